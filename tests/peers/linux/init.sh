#!/bin/busybox sh
# First program of the guest: mounts the host's / read-only by 9p, lays a tmpfs over it and goes on in there.
bb=/bin/busybox
. /settings
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
for module in /modules/*.ko; do
    $bb insmod "$module" || echo "init: $module was refused"
done
fail() {
    echo "init: $1 failed"
    $bb poweroff -f
}
# cache=loose: nobody changes what the guest has read already, and every read would be a round trip otherwise.
$bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /host || fail "the 9p mount"
$bb mount -t tmpfs -o size=60% rw /rw || fail "the tmpfs mount"
$bb mkdir /rw/upper /rw/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /root || fail "the overlay mount"
$bb cp /start /settings /root/
for directory in dev proc sys; do
    $bb mkdir -p "/root/$directory"
    $bb mount --move "/$directory" "/root/$directory"
done
exec $bb switch_root /root /bin/sh /start

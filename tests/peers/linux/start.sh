#!/bin/sh
# Second program of the guest, in the host's file system: what every program expects of a system, then the agent.
. /settings
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t tmpfs run /run
mkdir -p /run/lock /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
if [ -n "$MODULES" ]; then
    mkdir -p /lib/modules
    mount -t tmpfs modules /lib/modules
    ln -s "$MODULES" /lib/modules/
fi
# Udev's part of the work.
modprobe -a virtio_net virtio_rng
ip link set lo up
"$PYTHON" -I -S "$AGENT" /dev/vport*
echo "start: the agent has ended"
poweroff -f || busybox poweroff -f

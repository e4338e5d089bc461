# Two stages: the toolchain stays in the first; the second holds Python, four libraries and the package.
#
#   docker build -t esplanade .
#   docker run --rm --network host --device /dev/net/tun --cap-add NET_ADMIN --cap-add NET_RAW --cap-add BPF --cap-add PERFMON \
#       --cap-add IPC_LOCK -v /etc/esplanade:/etc/esplanade:ro -v /var/lib/esplanade:/var/lib/esplanade \
#       esplanade run -c /etc/esplanade/esplanade.toml
#
# With xdp ports --cap-add SYS_ADMIN, too, to start again after a kill.
#
# A stage of its own measures (docs/performance.md); results are left in ./results:
#
#   docker build --target bench -t esplanade-bench .
#   docker run --rm --privileged -v "$PWD/results:/src/bench/results" esplanade-bench --ci --baseline bench/baseline.json

FROM debian:bookworm AS build
# libipsec-mb exists for amd64 alone; elsewhere the package is built without that engine.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        gcc libc6-dev linux-libc-dev python3-dev python3-venv clang libssl-dev libxdp-dev libbpf-dev \
        $(test "$(dpkg --print-architecture)" != amd64 || echo libipsec-mb-dev) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/esplanade \
    && /opt/esplanade/bin/pip install --no-cache-dir . \
    && /opt/esplanade/bin/pip uninstall -y setuptools pip

FROM debian:bookworm AS bench
WORKDIR /src
COPY . .
RUN ./run bench --help && rm -rf /var/lib/apt/lists/*
# Privileged: benches make network namespaces, and come before whatever else the machine does.
ENTRYPOINT ["./run", "bench"]

FROM debian:bookworm-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 libssl3 libxdp1 libbpf1 iproute2 \
        $(test "$(dpkg --print-architecture)" != amd64 || echo libipsec-mb1) \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/esplanade /opt/esplanade
ENTRYPOINT ["/opt/esplanade/bin/esplanade"]
CMD ["--help"]

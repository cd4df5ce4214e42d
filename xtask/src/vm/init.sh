#!/busybox/busybox sh
# The guest's first process: runs every suite and every trial, says what came of them on the second serial line, and
# turns the machine off. The first line is the kernel's console. Lines that begin with @@ are read by xtask/src/vm.
export PATH=/bin:/sbin:/busybox HOME=/root
/busybox/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
agent=$(cat /agent-path)
mkdir -p "${agent%/*}"
ln -s /bin/blocker "$agent"
exec </dev/null >/dev/ttyS1 2>&1
stty -onlcr -F /dev/ttyS1
# By its whole path: busybox has an ip of its own, which its shell would take.
ip=/bin/ip
$ip link set lo up
# The machine ends even if nobody is left to end it.
(sleep "$RUN_SECONDS" && poweroff -f) &
# Its device is made when the module is loaded, which nobody does who opens it.
modprobe tun
seconds() { cut -d. -f1 /proc/uptime; }
echo "@@ booted $(uname -r) $(seconds)"

# What each process may take at most; the host has its own time-out for all together.
for name in $(echo "$SUITES" | tr , ' '); do
    echo "@@ suite $name"
    began=$(seconds)
    only=
    [ -e "/only/$name" ] && only=$(cat "/only/$name")
    BLOCKER_SLOWNESS=$SLOWNESS BLOCKER_SKIPS=/tmp/skips.$name \
        timeout -s KILL "$SUITE_SECONDS" "/suites/$name" --test-threads "$THREADS" $(cat /left-out) $only
    status=$?
    [ -e "/tmp/skips.$name" ] && cat "/tmp/skips.$name"
    echo "@@ ended $name $status $(($(seconds) - began))"
done

# No network device is there but those made here, each with its other end beside it.
for trial in /trials/*; do
    [ -e "$trial" ] || continue
    echo "@@ trial $(cat "$trial/name")"
    mkdir -p /run/blocker /var/lib/blocker
    while read -r line; do
        [ -n "$line" ] && { $ip $line || echo "ip $line: $?"; }
    done <"$trial/links"
    blocker run --config "$trial/blocker.toml" >/tmp/agent.log 2>&1 &
    agent=$!
    status=1
    # It is degraded until the ledger's bans are in the kernel.
    for _ in $(seq 100); do
        blocker --json --socket /run/blocker/blocker.sock status >/tmp/status 2>/tmp/status.error && status=0
        [ $status = 0 ] && grep -q '"health": *"ok"' /tmp/status && break
        kill -0 $agent 2>/dev/null || break
        sleep 0.2
    done
    if [ $status = 0 ]; then
        echo "@@ status $(tr -d '\n' </tmp/status)"
    else
        cat /tmp/status.error /tmp/agent.log
        echo "@@ refused"
    fi
    kill $agent 2>/dev/null
    wait $agent
    nft flush ruleset
    for link in $(ls /sys/class/net); do
        [ "$link" = lo ] || $ip link delete "$link" 2>/dev/null
    done
    rm -rf /sys/fs/bpf/blocker /run/blocker /var/lib/blocker
done
echo "@@ done"
sync
poweroff -f

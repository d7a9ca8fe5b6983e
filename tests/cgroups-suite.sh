#!/bin/bash
# Runs inside a machine with systemd and cgroup v2, as root: containers of gantry-oci with both cgroup drivers. Prints
# one line per fact; the first that does not hold ends it with an error. OCI names another runtime to run instead.
set -euo pipefail

oci=${OCI:-/usr/local/bin/gantry-oci}
chmod 755 "$oci"
work=/root/cgroups-suite
say() { echo "ok: $*"; }
fail() {
    echo "FAILED: $*"
    cat $work/log 2>/dev/null || true
    journalctl --no-pager -n 20 2>/dev/null || true
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]
say "cgroup v2 ($(cat /sys/fs/cgroup/cgroup.controllers)), systemd $(systemctl --version | head -n 1 | cut -d' ' -f2), kernel $(uname -r)"

mkdir -p $work/rootfs/{bin,proc,sys,dev,tmp}
cp "$(command -v busybox)" $work/rootfs/bin/busybox
for applet in sh true sleep cat echo dd kill ls mknod grep mkdir; do ln -sf busybox $work/rootfs/bin/$applet; done
cd $work
"$oci" spec

# config CGROUPSPATH RESOURCES-AS-JSON ANNOTATIONS-AS-JSON ARGUMENTS-AS-JSON: writes config.json.
template=$(cat config.json)
config() {
    echo "$template" | jq --arg path "$1" --argjson resources "$2" --argjson annotations "$3" --argjson args "$4" '
        .process.terminal = false | .process.args = $args | .root.readonly = true | .linux.cgroupsPath = $path
        | .linux.resources = $resources | .annotations = $annotations
        | .process.env = ["PATH=/bin"] | .process.rlimits = []
        | .process.capabilities |= map_values(. + ["CAP_MKNOD"] | unique)' >config.json
}

runtime() { "$oci" --log $work/log "${driver[@]}" "$@"; }
state() { runtime state "$1" | jq -r .status; }
# value FILE: of the container's cgroup.
value() { cat "/sys/fs/cgroup$group/$1"; }
same() { [ "$(value "$1")" = "$2" ] || fail "$name: $1 is $(value "$1"), not $2"; }
group_of() { cut -d: -f3 "/proc/$(runtime state "$1" | jq .pid)/cgroup"; }

disk=$(lsblk -dno MAJ:MIN 2>/dev/null | head -n 1 | tr -d ' ' || true)
[ -n "$disk" ] || disk=$(cat /sys/block/*/dev | head -n 1)
limits() {
    same memory.max 33554432
    same memory.low 16777216
    same pids.max 17
    same cpu.max "50000 100000"
    same cpu.weight 59
    grep -q "^$disk rbps=1048576 wbps=max riops=max wiops=100" "/sys/fs/cgroup$group/io.max"
    if [ -e "/sys/fs/cgroup$group/memory.swap.max" ]; then same memory.swap.max 33554432; fi
    if [ -e "/sys/fs/cgroup$group/io.weight" ]; then same io.weight "default 4950"; fi
}
resources=$(jq -n --arg disk "$disk" '($disk / ":" | map(tonumber)) as [$major, $minor] | {
    memory: {limit: 33554432, swap: 67108864, reservation: 16777216}, pids: {limit: 17},
    cpu: {shares: 512, quota: 50000, period: 100000},
    blockIO: {throttleReadBpsDevice: [{major: $major, minor: $minor, rate: 1048576}],
              throttleWriteIOPSDevice: [{major: $major, minor: $minor, rate: 100}]},
    devices: [{allow: false, access: "rwm"}]}')
if [ -e /sys/fs/cgroup/system.slice/io.weight ]; then
    resources=$(echo "$resources" | jq '.blockIO.weight = 500')
fi

for name in cgroupfs systemd; do
    if [ $name = systemd ]; then
        driver=(--systemd-cgroup)
        place="suite-a.slice:gantry:one"
    else
        driver=()
        place="/suite/one"
    fi

    # A whole life with limits.
    config "$place" "$resources" '{}' '["sleep", "1000"]'
    runtime create one
    [ "$(state one)" = created ]
    group=$(group_of one)
    limits
    say "$name: limits of a created container in $group"
    runtime start one
    [ "$(state one)" = running ]
    [ "$(cat "/sys/fs/cgroup$group/cgroup.procs")" = "$(runtime state one | jq .pid)" ]
    [ "$(runtime exec one echo inside)" = inside ]
    denied=$(runtime exec one sh -c 'echo x >/dev/null && mknod /dev/k c 1 11 && (: </dev/k) 2>&1' || true)
    if [[ $denied == *"not permitted"* ]]; then
        say "$name: a device that is not allowed is refused"
    else
        echo "SKIP $name device policy: this kernel does not enforce it ($denied)"
    fi
    say "$name: start, exec, one process in the group"
    if [ $name = systemd ]; then
        unit=gantry-one.scope
        [ "$group" = /suite.slice/suite-a.slice/$unit ]
        for property in ActiveState=active Slice=suite-a.slice Delegate=yes MemoryMax=33554432 MemoryLow=16777216 \
            TasksMax=17 CPUWeight=59 CPUQuotaPerSecUSec=500ms MemoryAccounting=yes; do
            [ "$(systemctl show -p "${property%%=*}" $unit)" = "$property" ] || fail "$(systemctl show $unit)"
        done
        say "systemd: the scope has the limits as properties"
    fi

    systemctl daemon-reload
    limits
    [ "$(runtime exec one sh -c '(: </dev/k) 2>&1' || true)" = "$denied" ]
    say "$name: limits after systemctl daemon-reload are those of before"

    # Update, then again a reload.
    runtime update --memory 64m --memory-swap 64m --pids-limit 30 --cpu-quota 25000 --cpu-share 1024 one
    for _ in 1 2; do
        same memory.max 67108864
        same pids.max 30
        same cpu.max "25000 100000"
        same cpu.weight 100
        if [ -e "/sys/fs/cgroup$group/memory.swap.max" ]; then same memory.swap.max 0; fi
        systemctl daemon-reload
    done
    echo '{"unified": {"memory.high": "60000000", "cgroup.max.depth": "9"}, "pids": {"limit": 0}}' | runtime update -r - one
    same memory.high 59998208
    same cgroup.max.depth 9
    same pids.max 1
    say "$name: update, kept by systemctl daemon-reload"
    runtime update --pids-limit -1 one
    same pids.max max
    ! runtime update -r - one <<<'{"unified": {"nope.max": "1"}}' 2>$work/error
    grep -q 'unified resource \\*"nope.max\\*" can.t be set: controller \\*"nope\\*" not available' $work/error
    say "$name: a controller that is missing is named"

    runtime pause one
    [ "$(state one)" = paused ]
    grep -q "frozen 1" "/sys/fs/cgroup$group/cgroup.events"
    runtime resume one
    [ "$(state one)" = running ]
    say "$name: pause and resume"
    runtime kill one KILL
    for _ in $(seq 100); do
        [ "$(state one)" = stopped ] && break
        read -r -t 0.1 <> <(:) || true
    done
    [ "$(state one)" = stopped ]
    runtime delete one
    [ ! -e "/sys/fs/cgroup$group" ]
    if [ $name = systemd ]; then
        [ "$(systemctl show -p LoadState --value $unit)" = not-found ]
        ! systemctl list-units --all --plain | grep -q gantry-one
    fi
    say "$name: kill and delete leave no group and no unit"

    # Limits so small that little fits, and one process.
    for limit in 1048576 524288; do
        config "${place%one}tiny" "{\"memory\": {\"limit\": $limit}}" '{}' '["true"]'
        status=0
        timeout 60 "$oci" --log $work/log "${driver[@]}" run tiny 2>$work/error || status=$?
        if [ $status = 0 ]; then
            say "$name: true runs with memory $limit"
        else
            grep -qi "memory limit too low" $work/error || fail "status $status: $(cat $work/error)"
            say "$name: memory $limit is refused in words: $(tail -n 1 $work/error)"
            [ $limit != 1048576 ]
        fi
    done
    config "${place%one}few" '{"pids": {"limit": 1}}' '{}' '["true"]'
    runtime run few
    say "$name: a container of one process runs"

    # Without a cgroup namespace its directory is bound; without a mount it sees the host's path.
    config "${place%one}bound" '{}' '{}' '["cat", "/proc/self/cgroup"]'
    jq '.linux.namespaces |= map(select(.type != "cgroup"))' config.json >other.json && mv other.json config.json
    runtime run bound | grep -q bound
    say "$name: without a cgroup namespace"

    # A user namespace gets its group.
    config "${place%one}user" '{}' '{}' '["sh", "-c", "mkdir /sys/fs/cgroup/below && echo made"]'
    jq '.linux.namespaces += [{"type": "user"}] | .linux.uidMappings = [{containerID: 0, hostID: 100000, size: 65536}]
        | .linux.gidMappings = .linux.uidMappings
        | .mounts |= map(if .type == "cgroup" then .options -= ["ro"] else . end)' config.json >other.json
    mv other.json config.json
    chown -R 100000:100000 rootfs && chmod 755 /root "$work"
    [ "$(runtime run user)" = made ]
    chown -R 0:0 rootfs
    say "$name: a group delegated to a user namespace"
done

# What annotations may and may not ask of a unit.
config "system.slice:gantry:props" '{}' '{"org.systemd.property.TimeoutStopSec": "7",
    "org.systemd.property.CollectMode": "'"'inactive-or-failed'"'"}' '["sleep", "1000"]'
runtime run -d props </dev/null >/dev/null 2>&1
[ "$(systemctl show -p TimeoutStopUSec --value gantry-props.scope)" = 7s ]
[ "$(systemctl show -p CollectMode --value gantry-props.scope)" = inactive-or-failed ]
say "systemd: properties from annotations"
# The same unit again: refused while it runs.
! runtime run second 2>$work/error
grep -qi "already" $work/error
[ "$(systemctl is-active gantry-props.scope)" = active ]
[ "$(state props)" = running ]
say "systemd: a second container does not get the unit of a running one: $(tail -n 1 $work/error)"
runtime delete -f props
[ "$(systemctl show -p LoadState --value gantry-props.scope)" = not-found ]

# The scope ends by its own time limit: it has failed, and neither delete nor a new container minds.
config "system.slice:gantry:brief" '{}' '{"org.systemd.property.RuntimeMaxSec": "1",
    "org.systemd.property.TimeoutStopSec": "1"}' '["sleep", "1000"]'
for _ in 1 2; do
    runtime run -d brief </dev/null >/dev/null 2>&1
    for _ in $(seq 200); do
        [ "$(state brief)" = stopped ] && break
        read -r -t 0.1 <> <(:) || true
    done
    [ "$(state brief)" = stopped ]
    say "systemd: the scope ended by RuntimeMaxSec: $(systemctl is-failed gantry-brief.scope || true)"
    runtime delete brief
    [ "$(systemctl show -p LoadState --value gantry-brief.scope)" = not-found ]
done
for property in 'Delegate": "false' 'ExecStartPre": "['"'/bin/true'"']' 'Slice": "'"'x.slice'" 'TimeoutStopSec": "soon'; do
    config "system.slice:gantry:bad" '{}' "{\"org.systemd.property.$property\"}" '["true"]'
    ! runtime run bad 2>$work/error
    grep -q "org.systemd.property.${property%%\"*}" $work/error
    say "refused: $(tail -n 1 $work/error)"
done
config "/not/a/scope" '{}' '{}' '["true"]'
! runtime run bad 2>$work/error
grep -q 'slice:prefix:name' $work/error
say "refused: $(tail -n 1 $work/error)"
! systemctl list-units --all --plain | grep -q 'gantry-.*\.scope'
[ -z "$(systemctl --failed --plain --no-legend | grep gantry || true)" ]
say "systemd: nothing is left"

#!/bin/bash
# Runs inside a machine with systemd and cgroup v2, as root: the unit starts, containers with limits survive a restart
# of the daemon and stop clean. Prints one line per fact; the first that does not hold ends it with an error.
set -euo pipefail

say() { echo "ok: $*"; }
fail() {
    echo "FAILED: $*"
    systemctl status gantryd --no-pager || true
    journalctl -u gantryd --no-pager | tail -n 60 || true
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

ctl="gantryctl"
image="docker.io/library/busybox:latest"
group=/sys/fs/cgroup/gantry/default/web

[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]
say "cgroup v2, $(systemctl --version | head -n 1), kernel $(uname -r)"

chmod 755 /usr/local/bin/*
systemctl daemon-reload
systemctl start gantryd
[ "$(systemctl is-active gantryd)" = active ]
say "the unit is active: $(systemctl show -p Type -p Delegate -p KillMode gantryd | tr '\n' ' ')"

$ctl image import /root/busybox.tar
$ctl run -d --memory 32m --cpus 0.5 --pids 16 "$image" web sh -c 'trap "exit 5" TERM; while :; do sleep 1000 & wait; done'
cgroup=$(cut -d: -f3 "/proc/$($ctl ps | awk '$1 == "web" {print $3}')/cgroup")
group=/sys/fs/cgroup$cgroup
[ "$(cat "$group/memory.max")" = 33554432 ]
[ "$(cat "$group/cpu.max")" = "50000 100000" ]
[ "$(cat "$group/pids.max")" = 16 ]
say "limits in $cgroup: memory.max cpu.max pids.max"

before=$($ctl ps | awk '$1 == "web" {print $3}')
systemctl restart gantryd
[ "$(systemctl is-active gantryd)" = active ]
after=$($ctl ps | awk '$1 == "web" {print $2, $3}')
[ "$after" = "RUNNING $before" ]
say "after systemctl restart the container is the same process: $after"
[ "$($ctl exec web echo inside)" = inside ]
say "an exec works after the restart"

systemctl daemon-reload
[ "$(cat "$group/memory.max")" = 33554432 ]
say "limits survive systemctl daemon-reload"

$ctl kill web
for _ in $(seq 100); do
    $ctl ps | grep -q 'STOPPED(5)' && break
    read -r -t 0.1 <> <(:) || true
done
$ctl ps | grep -q 'STOPPED(5)'
$ctl rm web
[ ! -e "$group" ]
! pgrep -f containerd-shim-gantry >/dev/null
say "the container ended by its own handler and left no cgroup and no shim"

systemctl stop gantryd
[ "$(systemctl is-active gantryd)" = inactive ]
[ "$(systemctl show -p Result --value gantryd)" = success ]
say "the unit stopped with result success"

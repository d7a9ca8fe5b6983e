#!/bin/bash
# Checkpoint and restore by a CRIU that can serve: run as root on a throwaway machine with criu, busybox-static, python3
# and gantry-oci. Each line says what was seen; the last one counts.
set -u
cd "$(mktemp -d)" || exit 1
runtime=${1:-/usr/local/bin/gantry-oci}
# Errors go to a log: a stream in a file of the host could not be dumped.
oci() { rm -f error; "$runtime" --root "$PWD/state" --log "$PWD/error" "$@"; }
passed=0
pass() { echo "ok: $1"; passed=$((passed + 1)); }
fail() {
    echo "FAILED: $1"
    for log in work/*.log images/*.log; do [ -f "$log" ] && grep -n Error "$log" | tail -n 5; done
    exit 1
}
count() { cat rootfs/tmp/count; }
moves() { # the counter goes on
    local before now i
    before=$(count)
    for i in $(seq 100); do
        now=$(count)
        [ -n "$now" ] && [ "$now" -gt "$before" ] && return 0
        sleep 0.1
    done
    return 1
}
gone() { ! oci state box > /dev/null 2>&1; }

mkdir -p rootfs/{bin,proc,sys,dev,tmp,etc,mnt} shared
cp /bin/busybox rootfs/bin/
for applet in sh sleep cat echo ls mkdir id; do ln -s busybox rootfs/bin/$applet; done
ln -s /mnt rootfs/link
oci spec
python3 - << 'P'
import json
with open("config.json") as file: spec = json.load(file)
spec["process"].update(terminal=False, rlimits=[],
    args=["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done"])
spec["root"]["readonly"] = False
spec["linux"]["cgroupsPath"] = "/gantry-criu/box"
spec["linux"]["resources"] = {"pids": {"limit": 50}}
# The bind mount's place is a link, and one is inside of another.
spec["mounts"] += [{"destination": "/link", "type": "bind", "source": "shared", "options": ["bind"]},
                   {"destination": "/mnt/inner", "type": "bind", "source": "shared", "options": ["bind", "ro"]}]
with open("config.json", "w") as file: json.dump(spec, file)
P
start() { oci run -d box < /dev/null > /dev/null 2>&1 || fail "run: $(cat error)"; }
start
sleep 1
moves || fail "the container counts"

oci checkpoint --leave-running --image-path leave --work-path work box 2> /dev/null || fail "leave-running: $(cat error)"
moves && pass "checkpoint --leave-running leaves it running"

for round in 1 2; do
    oci checkpoint --image-path images --work-path work box 2> /dev/null || fail "checkpoint: $(cat error)"
    gone || fail "the container is gone after a checkpoint"
    at=$(count)
    sleep 0.5
    [ "$(count)" = "$at" ] || fail "nothing counts after a checkpoint"
    rm -rf shared/inner
    oci restore -d --image-path images --work-path work --pid-file pid box < /dev/null > /dev/null 2>&1 \
        || fail "restore: $(cat error)"
    moves || fail "the restored container counts"
    [ "$(count)" -gt "$at" ] || fail "it goes on where it was"
    [ "$(oci state box | python3 -c 'import json,sys; s=json.load(sys.stdin); print(s["status"], s["pid"])')" = "running $(cat pid)" ] \
        || fail "state of the restored container"
    [ "$(oci exec box echo inside)" = inside ] || fail "exec in the restored container"
    grep -q gantry-criu/box "/proc/$(cat pid)/cgroup" || fail "the restored container is in its cgroup"
    [ -z "$(mount | grep "$PWD")" ] || fail "a mount is left on the host"
    pass "checkpoint and restore, round $round"
done

oci checkpoint --pre-dump --image-path before box 2> /dev/null || fail "pre-dump: $(cat error)"
moves || fail "a pre-dump leaves it running"
oci checkpoint --parent-path ../before --image-path after --work-path work box 2> /dev/null || fail "with a parent: $(cat error)"
[ -L after/parent ] || fail "the images have a parent"
oci restore -d --image-path after --work-path work box < /dev/null > /dev/null 2>&1 || fail "restore with a parent: $(cat error)"
moves && pass "pre-dump, dump with a parent, restore"

# The same images, and a specification that gives less.
oci checkpoint --image-path images --work-path work box 2> /dev/null || fail "checkpoint: $(cat error)"
cp config.json config.full
python3 - << 'P'
import json
with open("config.json") as file: spec = json.load(file)
spec["process"]["capabilities"] = {}
with open("config.json", "w") as file: json.dump(spec, file)
P
if oci restore -d --image-path images --work-path work box < /dev/null > /dev/null 2>&1; then
    fail "images with more rights than the specification are restored"
fi
refusal=$(cat error)
[[ $refusal == *"do not agree with the specification"* ]] || fail "refusal: $refusal"
gone || fail "a refused restore leaves a container"
at=$(count)
sleep 0.5
[ "$(count)" = "$at" ] || fail "a refused restore leaves something running"
pass "images with more rights than the specification gives are refused: $refusal"
cp config.full config.json

# A link in the images that leads out of them.
cp -a images hostile
core=$(cd hostile && ls core-*.img | head -n 1)
mv "hostile/$core" elsewhere.img
ln -s "$PWD/elsewhere.img" "hostile/$core"
oci restore -d --image-path hostile --work-path work box < /dev/null > /dev/null 2>&1 && fail "a link is followed"
grep -q "is a link" error && pass "a link in the images is refused"

oci restore -d --image-path images --work-path work box < /dev/null > /dev/null 2>&1 || fail "restore: $(cat error)"
moves || fail "it counts again"
oci restore -d --image-path images box < /dev/null > /dev/null 2>&1 && fail "a name is used twice"
moves && pass "the same images restore again, under a free name only"
oci delete --force box || fail "delete"
gone || fail "deleted"
[ -z "$(find /sys/fs/cgroup -type d -path '*gantry-criu/box*')" ] || fail "a cgroup is left"
rmdir /sys/fs/cgroup/gantry-criu 2> /dev/null
pass "nothing is left"
echo "$passed passed"

# Runs in the booted FreeBSD, as root: looks whether it has what the tests need, runs them one after the other, and writes
# the logs to the third disk. What it says is read by results.rs.

cd /skep || exit 1
. ./environment
export LC_ALL=C
mkdir -p logs
lacking=0

missing() {
	echo "@@ missing $*"
	lacking=1
}

for program in ifconfig jail jls kldload kldstat mount pfctl procstat ps sockstat tar timeout; do
	command -v $program >/dev/null || missing "the program $program of the base system"
done
modules="if_bridge if_tuntap if_epair pf nullfs fdescfs tmpfs ng_ether ng_bridge"
[ "$containers" = 1 ] && modules="vmm nmdm $modules"
for module in $modules; do
	kldstat -q -m $module 2>/dev/null || kldload -n $module >logs/kldload 2>&1 || {
		missing "the kernel module $module: $(tail -1 logs/kldload)"
		[ $module = vmm ] && dmesg | grep -E 'SVM|VMX|VT-x|vmm' | tail -3 | while read -r line; do
			echo "@@ missing   the kernel said: $line"
		done
	}
done
if [ "$containers" = 1 ]; then
	for program in bhyve bhyvectl; do
		command -v $program >/dev/null || missing "the program $program of the base system"
	done
fi
free=$(df -k /tmp | awk 'END { print int($4 / 1024) }')
[ "$free" -ge 1024 ] || missing "1024 MiB of space for /tmp, of which $free are free"
[ "$(sysctl -n kern.features.vimage 2>/dev/null || sysctl -n kern.conftxt | grep -c VIMAGE)" != 0 ] ||
	missing "a kernel with VIMAGE"

if [ $lacking = 0 ]; then
	while read -r name limit arguments; do
		echo "@@ begin $name"
		# In the foreground, or it waits for all that a test started: the service that one started again stays.
		# shellcheck disable=SC2086 # a filter is several words
		timeout -f -k 20 "$limit" "tests/$name" $arguments 2>&1 </dev/null
		echo "@@ end $name $?"
	done <plan
fi

dmesg >logs/dmesg
sysctl hw.vmm >logs/vmm 2>&1
ps -axww >logs/processes
mount >logs/mounts
ifconfig >logs/interfaces
cp /skep/plan logs/
tar -cf /dev/vtbd2 -C /skep logs
echo "@@ done"

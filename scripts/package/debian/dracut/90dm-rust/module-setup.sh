#!/bin/bash
# A root on LVM2 with a snapshot, or with a merge that is pending, needs the targets before the root
# file system is there.

# called by dracut
check() {
    modinfo -k "${kernel:-$(uname -r)}" dm_rust >/dev/null 2>&1
}

# called by dracut
depends() {
    echo dm
}

# called by dracut
installkernel() {
    hostonly='' instmods dm_rust
}

# called by dracut: modprobe's "install" lines come with the kernel-modules module
install() {
    :
}

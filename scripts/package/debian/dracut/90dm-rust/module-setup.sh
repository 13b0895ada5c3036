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

# called by dracut: its kernel-modules brings the "install" lines; but of /etc/modprobe.d, where
# dm-rust-ctl and the parameter "targets" choose, an initramfs that is not for one host has nothing.
install() {
    local file
    for file in /etc/modprobe.d/*.conf; do
        [[ $file == */dm-rust.conf ]] || grep -qs 'dm[-_]rust' "$file" || continue
        inst_simple "$file"
    done
}

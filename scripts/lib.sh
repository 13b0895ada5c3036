# Shared by the scripts of this folder; sourced, never run.
set -Eeuo pipefail
shopt -s inherit_errexit

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
scripts=$project/scripts
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dm-rust
[[ $cache == /* ]] || cache=$PWD/$cache

# The kernel to build for and to run on, from the environment; no other script chooses it.
#   KERNEL_SERIES   in the backports of trixie; the default is the newest one with image, headers
#                   and source
#   KERNEL_VERSION  one version (7.2.12) instead of the newest of the series
#   KERNEL_SUITE    sid instead of trixie: its newest kernel, unless KERNEL_SERIES is given, and its
#                   compilers
#   KERNEL_FLAVOUR  cloud, rt, or 16k (page size of arm64)
#   ARCH            arm64 instead of amd64: compiled here, run in an emulated guest
default_series=7.3
suite=${KERNEL_SUITE:-trixie} flavour=${KERNEL_FLAVOUR:-} arch=${ARCH:-amd64}
series=${KERNEL_SERIES:-}
[[ $series || ! ${KERNEL_VERSION:-} ]] || series=${KERNEL_VERSION%.*}
[[ $series || $suite == sid ]] || series=$default_series
# Its label in file names: 7.3, 7.2-rt, 7.2.6, sid, sid-7.2, 7.3-arm64.
label=${suite#trixie}-${KERNEL_VERSION:-$series}-${arch#amd64}-$flavour
label=$(sed 's/--*/-/g; s/^-//; s/-$//' <<<"$label")

say() { printf '==> %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
[[ $suite == trixie || $suite == sid ]] || die "no suite '$suite': trixie or sid"
[[ $arch == amd64 || $arch == arm64 ]] || die "no architecture '$arch': amd64 or arm64"
[[ $arch != amd64 ]] || unset ARCH    # Kbuild has another name for it

# The start of a command line that runs the rest of it as root in a new mount namespace: with real
# root rights, or with those of a user namespace. It adds no process in between, so signals arrive.
as_root=(unshare --mount --propagation private)
((EUID == 0)) || as_root+=(--map-auto --map-root-user)

# Reports what as_root lacks.
check_as_root() {
    if ((EUID == 0)); then
        "${as_root[@]}" true ||
            die "root may not make mount namespaces here: a container needs CAP_SYS_ADMIN"
        return
    fi
    command -v newuidmap >/dev/null ||
        die "an ordinary user needs newuidmap: 'apt-get install uidmap', or run this as root"
    grep -q "^\($(id -un)\|$EUID\):" /etc/subuid ||
        die "no subordinate user ids; as root:" \
            "'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)'"
    "${as_root[@]}" true 2>/dev/null ||
        die "ordinary users may not make user namespaces on this machine" \
            "(see kernel.unprivileged_userns_clone): run this as root"
}

# hash FILE...: a short key of the contents of files and, on standard input, of anything else.
hash() { cat - "$@" | sha256sum | cut -c1-12; }

# logged LOG COMMAND...: runs a command and keeps its output in LOG. The terminal shows the lines
# that start with "==> ", and the end of the log if the command fails.
logged() {
    local log=$1
    shift
    if "$@" 2>&1 | tee "$log" | sed -un '/^==> /p' >&2; then return; fi
    tail -n 40 "$log" >&2
    return 1
}

# cached NAME KEY COMMAND...: prints $cache/NAME-LABEL-KEY, after "COMMAND... TEMPORARY" has made it
# if it does not exist. It is made under a temporary name and renamed, so it is never incomplete.
cached() {
    local name=$1-$label path=$cache/$1-$label-$2 lock
    shift 2
    mkdir -p "$cache"
    if [[ ! -e $path ]]; then
        exec {lock}>"$cache/$name.making"
        flock -n "$lock" || { say "waiting for another run that makes '$name'"; flock "$lock"; }
        if [[ ! -e $path ]]; then
            local start=$SECONDS
            "${as_root[@]}" rm -rf "$path.part"
            mkdir "$path.part"
            logged "$path.log" "$@" "$path.part" ||
                die "making '$name' failed; the whole log is $path.log"
            mv "$path.part" "$path"
            say "$name ready after $((SECONDS - start)) s: $path"
            forget_stale "$name" "$path"
        fi
        exec {lock}>&-
    fi
    touch "$path.used"
    printf '%s\n' "$path"
}

# forget_stale NAME PATH: removes what was cached under the same name and label but another key,
# unless a run holds it or it was used within a day.
forget_stale() {
    local other
    for other in "$cache/$1-"*; do
        [[ -d $other && $other != "$2" && $other =~ -[0-9a-f]{12}$ ]] || continue
        [[ ${other%-*} == "$cache/$1" ]] || continue
        [[ -z $(find "$other.used" -mtime -1 2>/dev/null) ]] || continue
        (
            exec 8>>"$other.used"
            flock -n 8 || exit 0
            say "removing $other, not used for a day"
            "${as_root[@]}" rm -rf "$other" && rm -f "$other".{used,log}
        )
    done
}

# hold PATH: keeps a cached path from being removed while this process or a child of it runs.
hold() {
    local lock
    exec {lock}>>"$1.used"
    flock -s "$lock"
}

# toolchain ROOT: what a kernel tree depends on, so other changes of the root do not rebuild it.
toolchain() {
    dpkg-query --admindir="$1/var/lib/dpkg" --show \
        bindgen clang gcc 'linux-source-[0-9]*' lld llvm rustc
    cat "$1/etc/dm-rust-kernel"
}

# kernel_make NAME: the arguments of make for a kernel (stock, debug, uml, native or arm), one per
# line.
# Without -mlarge-data-threshold clang puts data of User Mode Linux into sections that its linker
# script does not know, where kmemleak does not look.
kernel_make() {
    [[ $arch == amd64 || $1 == stock ]] || die "the debug kernels are for amd64 only"
    case $1 in
    stock) [[ $arch == amd64 ]] || printf '%s\n' "ARCH=$arch" CROSS_COMPILE=aarch64-linux-gnu- ;;
    debug) echo LLVM=1 ;;
    uml | native)
        printf '%s\n' ARCH=um LLVM=1 \
            'CFLAGS_KERNEL=-mlarge-data-threshold=2147483647 -Wno-unused-command-line-argument'
        ;;
    arm) printf '%s\n' ARCH=arm LLVM=1 ;;
    *) die "no kernel '$1': stock, debug, uml, native or arm" ;;
    esac
}

# kernel_tree NAME: the path of the tree to build modules for a kernel with; made if necessary.
kernel_tree() {
    case $1 in
    stock) "$scripts/kernel" ;;
    *) "$scripts/debug-kernel" "$1" ;;
    esac
}

# module_folder KERNEL [COPY]: the folder in which scripts/build makes rust/dm_rust.ko for a kernel.
module_folder() {
    local name=
    [[ $label == "$default_series" ]] || name=-$label
    [[ $1 == stock ]] || name+=-$1
    name+=${2:+-$2}
    echo "$project${name:+/.build/${name#-}}"
}

# share_certificates ROOT: gives a root the host's certificates, which may be more than Debian's.
# Only in a private mount namespace.
share_certificates() {
    local bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    local target=$1/etc/ssl/certs/ca-certificates.crt
    [[ -s $bundle && -e $target ]] && mount --bind "$bundle" "$target" || true
}

# bootstrap ARGUMENT...: mmdebstrap in a new pid namespace, so that it may mount /proc.
bootstrap() {
    "${as_root[@]}" --pid --fork --kill-child --mount-proc -- \
        mmdebstrap --mode=root --format=directory --dpkgopt=force-unsafe-io \
            --aptopt=<(host_apt_settings) "$@"
}

# The host's apt may need a proxy or certificates of its own. The lists of sid expire after a week,
# also on a mirror that is not updated; they are signed all the same.
host_apt_settings() {
    [[ $suite != sid ]] || echo 'Acquire::Check-Valid-Until "false";'
    apt-config dump 2>/dev/null |
        grep -iE '^Acquire::[a-z]+::(.*proxy|cainfo|capath|verify)' || true
}

need_mmdebstrap() {
    command -v mmdebstrap >/dev/null && return
    local sudo=()
    if ((EUID != 0)); then
        sudo=(sudo -n)
        sudo -n true 2>/dev/null ||
            die "mmdebstrap is missing: 'apt-get install mmdebstrap' (as root)"
    fi
    command -v apt-get >/dev/null || die "mmdebstrap is missing, and so is apt-get to install it"
    say "installing mmdebstrap"
    "${sudo[@]}" apt-get -q update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qy install --no-install-recommends mmdebstrap debian-archive-keyring
}

# Called by mmdebstrap before it loads the package lists.
hook_backports() {
    [[ $suite == trixie ]] || return 0
    sed -n 's/ trixie / trixie-backports /p' "$1/etc/apt/sources.list" \
        >"$1/etc/apt/sources.list.d/backports.list"
}

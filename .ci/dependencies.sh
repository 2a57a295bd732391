# .ci/dependencies.sh - sourced by the scripts a person runs: installs what is missing on Debian 12 and
# Ubuntu 24.04 through apt, and nothing else.

# need_packages NAME...: installs those that are not there yet.
need_packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing="$missing $package"
    done
    [ -z "$missing" ] && return 0
    if ! command -v apt-get >/dev/null; then
        echo "Please install (Debian's names):$missing" >&2
        return 1
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "Not root, no sudo; please install:$missing" >&2; return 1; }
        as_root=sudo
    fi
    echo "Installing:$missing"
    $as_root apt-get update -qq >/dev/null || return 1
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
        $missing >/dev/null
}

# need_tool TOOL NAME...: the packages only where the tool is not there in any other way.
need_tool() {
    command -v "$1" >/dev/null && return 0
    shift
    need_packages "$@"
}

need_build_packages() {
    need_tool cc gcc libc6-dev && need_tool make make && need_tool cmake cmake &&
        need_packages libc6-dev zlib1g-dev libcjson-dev libutf8proc-dev
}

jobs=$(nproc 2>/dev/null || echo 2)

# Shared by the scripts: where things lie, and how what is missing gets there. Sourced, never run.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/clawmatrix
OPENCLAW_VERSION=2026.9.6
NODE_MAJOR=24
OPENAI_NPM=7.55.0
OPENAI_PYPI=3.52.0
TYPESCRIPT=5.9.3
CARGO_DENY=0.20.2
NEXTEST=0.9.143
ZIG=0.17.0
ZIGBUILD=0.24.0

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A command that fails names itself and how to get it.
need() {
  command -v "$1" >/dev/null 2>&1 || die "\`$1\` is missing; install it with: $2"
}

version_of() { sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -1; }

# The folder name of this platform in dist/bin, as the shim looks for it.
platform() {
  local os arch
  case $(uname -s) in
    Linux) os=linux ;;
    Darwin) os=darwin ;;
    *) die "no build for $(uname -s); on Windows use WSL2" ;;
  esac
  case $(uname -m) in
    x86_64 | amd64) arch=x64 ;;
    aarch64 | arm64) arch=arm64 ;;
    *) die "no build for $(uname -m)" ;;
  esac
  printf '%s-%s' "$os" "$arch"
}

target_dir() {
  if [ -n "${CARGO_TARGET_DIR:-}" ]; then printf '%s' "$CARGO_TARGET_DIR"; else printf '%s/target' "$ROOT"; fi
}

# Runs "$@" with the lock of a cache entry, so that two scripts do not fill it at once.
with_lock() {
  local name=$1
  shift
  mkdir -p "$CACHE"
  (
    if command -v flock >/dev/null 2>&1; then
      exec 9>"$CACHE/.$name.lock"
      flock 9
    fi
    "$@"
  )
}

# As "$@" but quiet: its output is shown only when it fails.
quietly() {
  local log
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then rm -f "$log"; else
    cat "$log" >&2
    rm -f "$log"
    return 1
  fi
}

apt_install() { # packages…: as root on a Debian-like system, else fails
  command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ] || return 1
  say "installing $* (Debian packages)"
  quietly apt-get install -y --no-install-recommends "$@" ||
    { quietly apt-get update && quietly apt-get install -y --no-install-recommends "$@"; }
}

need_rust() {
  need cargo "https://rustup.rs"
  need cc "apt-get install gcc (or your system's C compiler)"
}

need_node() {
  need node "https://nodejs.org (20 or later)"
  need npm "https://nodejs.org (20 or later)"
  local major
  major=$(node -p 'process.versions.node.split(".")[0]')
  [ "$major" -ge 20 ] || die "Node $major is too old for the scripts; 20 or later is needed"
}

# OpenClaw with the Node it wants. Node comes first: OpenClaw's own install step refuses an older one.
_openclaw() {
  local dir=$1 tmp=$1.new.$$
  [ -x "$dir/node_modules/.bin/openclaw" ] && return 0
  say "installing Node $NODE_MAJOR and OpenClaw $OPENCLAW_VERSION into $dir"
  rm -rf "$dir" "$tmp"
  mkdir -p "$tmp"
  quietly npm install --no-fund --no-audit --prefix "$tmp" "node@$NODE_MAJOR"
  PATH="$tmp/node_modules/.bin:$PATH" quietly npm install --no-fund --no-audit --prefix "$tmp" "openclaw@$OPENCLAW_VERSION"
  mv "$tmp" "$dir"
}
setup_openclaw() {
  need_node
  export CLAWMATRIX_OPENCLAW=${CLAWMATRIX_OPENCLAW:-$CACHE/openclaw-$OPENCLAW_VERSION}
  with_lock openclaw _openclaw "$CLAWMATRIX_OPENCLAW"
}

_npm_cached() { # folder, package@version…
  local dir=$1
  shift
  [ -e "$dir/.complete" ] && return 0
  say "installing $* into $dir"
  rm -rf "$dir"
  mkdir -p "$dir"
  quietly npm install --no-fund --no-audit --prefix "$dir" "$@"
  touch "$dir/.complete"
}
_python_sdk() {
  local dir=$1
  [ -e "$dir/.complete" ] && return 0
  say "installing openai $OPENAI_PYPI (PyPI) into $dir"
  rm -rf "$dir"
  python3 -m venv "$dir"
  quietly "$dir/bin/pip" install --disable-pip-version-check "openai==$OPENAI_PYPI"
  touch "$dir/.complete"
}
# The official SDKs. Python is optional: without it the tests that need it are counted as skipped.
setup_sdks() {
  need_node
  export CLAWMATRIX_SDK_NODE=$CACHE/sdk-node-$OPENAI_NPM
  with_lock sdk-node _npm_cached "$CLAWMATRIX_SDK_NODE" "openai@$OPENAI_NPM"
  local venv=$CACHE/sdk-python-$OPENAI_PYPI
  export CLAWMATRIX_SDK_PYTHON=$venv/bin/python
  if command -v python3 >/dev/null 2>&1; then
    with_lock sdk-python _python_sdk "$venv" || say "warning: openai for Python could not be installed"
  fi
}

setup_typescript() {
  need_node
  local dir=$CACHE/typescript-$TYPESCRIPT
  with_lock typescript _npm_cached "$dir" "typescript@$TYPESCRIPT" "@types/node@20"
  TSC=$dir/node_modules/.bin/tsc
  export CLAWMATRIX_TYPES=$dir/node_modules/@types
}

_cargo_tool() { # crate version binary
  local root=$CACHE/cargo-tools
  [ -e "$root/.$1-$2" ] && return 0
  say "building $1 $2 (once, into $root)"
  quietly cargo install --locked --root "$root" --target-dir "$CACHE/cargo-tools-target" "$1@$2"
  rm -rf "$CACHE/cargo-tools-target"
  touch "$root/.$1-$2"
}
setup_deny() {
  with_lock cargo-deny _cargo_tool cargo-deny "$CARGO_DENY"
  DENY=$CACHE/cargo-tools/bin/cargo-deny
}
setup_nextest() {
  if command -v cargo-nextest >/dev/null 2>&1; then return 0; fi
  with_lock cargo-nextest _cargo_tool cargo-nextest "$NEXTEST"
  export PATH="$CACHE/cargo-tools/bin:$PATH"
}

_zig() {
  local dir=$1
  [ -e "$dir/.complete" ] && return 0
  say "installing zig $ZIG and cargo-zigbuild $ZIGBUILD (PyPI) into $dir"
  rm -rf "$dir"
  # Called in a condition, where `set -e` does not hold.
  python3 -m venv "$dir" &&
    quietly "$dir/bin/pip" install --disable-pip-version-check "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD" &&
    touch "$dir/.complete"
}
# A linker that links against an old glibc, so that one binary runs on any distribution.
setup_zig() {
  command -v python3 >/dev/null 2>&1 || return 1
  local dir=$CACHE/zig-$ZIG-$ZIGBUILD
  with_lock zig _zig "$dir" || return 1
  export PATH="$dir/bin:$PATH"
}

setup_nginx() {
  export PATH="$PATH:/usr/sbin"
  command -v nginx >/dev/null 2>&1 || apt_install nginx-light || true
  need nginx "apt-get install nginx-light"
  command -v wrk >/dev/null 2>&1 || apt_install wrk || true
  need wrk "apt-get install wrk"
  need openssl "apt-get install openssl"
}

# Reverse proxies for the tests of what the docs say; a test whose proxy is missing says so.
setup_proxies() {
  export PATH="$PATH:/usr/sbin"
  command -v nginx >/dev/null 2>&1 || apt_install nginx-light || true
  command -v caddy >/dev/null 2>&1 || apt_install caddy || true
  command -v openssl >/dev/null 2>&1 || apt_install openssl || true
}

# Wrong clocks for single processes.
setup_faketime() {
  [ -n "$(find /usr/lib -path "*faketime/libfaketime.so.1" 2>/dev/null)" ] || apt_install libfaketime || true
}

# Several hosts on one machine. Where that does not work the tests say why and are skipped.
setup_namespaces() {
  export PATH="$PATH:/usr/sbin:/sbin"
  command -v ip >/dev/null 2>&1 || apt_install iproute2 || true
  command -v nft >/dev/null 2>&1 || apt_install nftables || true
}

# Puts the plugin and the binaries given as `platform=path` into one tarball, as `npm pack` would.
# Nothing is fetched and no npm script runs.
pack_plugin() { # output.tgz platform=binary…
  local out=$1 stage
  shift
  [ -f "$ROOT/plugin/package.json" ] || die "plugin/package.json is missing"
  stage=$(mktemp -d)
  mkdir -p "$stage/package"
  (cd "$ROOT/plugin" && tar -cf - --exclude=./node_modules --exclude=./bin --exclude=./test --exclude='*.test.js' --exclude=./tsconfig.json .) | tar -xf - -C "$stage/package"
  [ -f "$stage/package/LICENSE" ] || cp "$ROOT/LICENSE" "$stage/package/LICENSE"
  local entry
  for entry in "$@"; do
    install -D -m 755 "${entry#*=}" "$stage/package/bin/${entry%%=*}/clawmatrix"
  done
  mkdir -p "$(dirname "$out")"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime='2026-01-01 00:00Z' -czf "$out.new" -C "$stage" package 2>/dev/null ||
    tar -czf "$out.new" -C "$stage" package # a tar without GNU's options (macOS)
  mv "$out.new" "$out"
  rm -rf "$stage"
}

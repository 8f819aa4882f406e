#!/bin/bash
# Build the guest image of dgis: one disk for every role, a kernel and an initramfs beside it. See --help and README.md.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
checkout=$(realpath "$here/../..")
suite=bookworm sources='' extras=postgresql,jpeg size=auto mode='' keep='' out=''
python=${PYTHON:-python3}

usage() {
  cat <<'U'
usage: build.sh [options] OUT

Makes OUT/disk.raw (ext4 without partitions, label dgisroot), OUT/vmlinuz, OUT/initrd.gz, OUT/manifest.json, and
OUT/wheels, from which dgis-upgrade brings the release into guests that are there already.
Needs no root, no loop device and no mount; takes one to two minutes and 3 GB below OUT while it works.

  --sources FILE   apt sources of the guest (default: this machine's Debian sources)
  --suite NAME     Debian release (default: bookworm)
  --extras LIST    extras of dgis to install (default: postgresql,jpeg)
  --size SIZE      size of the root file system, like 2G (default: what it holds and room for another release)
  --mode MODE      mmdebstrap's mode (default: auto for root, unshare for others)
  --keep           leave OUT/.dgis-build with the root file system's tar and the logs
  -h, --help       this text

SOURCE_DATE_EPOCH is the date of every file (default: that of the last commit); PYTHON runs pip (default: python3).

examples: vm-images/build/build.sh /srv/images/dgis
          vm-images/build/build.sh --sources mirror.sources --size 4G image
U
}

usage_error() { echo "build.sh: $*; see build.sh --help" >&2; exit 2; }
fail() { echo "build.sh: $*" >&2; exit 1; }
say() { printf '[%3ds] %s\n' "$SECONDS" "$*" >&2; }

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --sources | --suite | --extras | --size | --mode)
        [ $# -gt 1 ] || usage_error "$1 wants a value"
        printf -v "${1#--}" %s "$2"
        shift ;;
      --keep) keep=yes ;;
      -*) usage_error "no option $1" ;;
      *) [ -z "$out" ] || usage_error "one directory OUT is wanted"; out=$1 ;;
    esac
    shift
  done
  [ -n "$out" ] || usage_error "say where the image goes"
}

# Every tool, with the Debian package that brings it, before anything is begun
check_tools() {
  local missing='' command package
  while read -r command package; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing+=" $package"
  done <<'T'
mmdebstrap mmdebstrap
apt-get apt
mke2fs e2fsprogs
debugfs e2fsprogs
tar tar
sha256sum coreutils
T
  if [ "$(id -u)" != 0 ]; then
    command -v newuidmap >/dev/null || missing+=" uidmap"
    command -v unshare >/dev/null || missing+=" util-linux"
  fi
  "$python" -m pip --version >/dev/null 2>&1 || missing+=" python3-pip"
  [ -z "$missing" ] || fail "missing Debian packages: $(tr ' ' '\n' <<<"${missing# }" | sort -u | paste -sd' '); apt-get install them"
  if [ "$(id -u)" != 0 ] && ! grep -q "^$(id -un):" /etc/subuid; then
    fail "this user has no subordinate ids; as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
  fi
}

default_sources() {
  local file
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    if [ -s "$file" ]; then echo "$file"; return; fi
  done
  fail "no apt sources on this machine: give some by --sources FILE"
}

# Entries of a list file, joined by commas
listed() { sed -e 's/#.*//' -e '/^ *$/d' "$1" | paste -sd,; }

# The wheel of dgis from a copy of the checkout (a build inside it would leave files there, and take up stale ones), and
# the wheels of all it needs, for the guest's Python and C library whatever this machine has
make_wheels() {
  local source=$work/source wheels=$1 platforms=() minor
  mkdir -p "$source" "$wheels"
  tar -C "$checkout" --exclude=__pycache__ -c setup.cfg pyproject.toml README.md LICENSE certs catalog storage_provider dgis |
    tar -C "$source" -x
  chmod -R u=rwX,go=rX "$source"
  pip wheel --no-deps --wheel-dir "$wheels" "$source"
  for ((minor = 36; minor >= 5; minor--)); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
  for name in manylinux2014 manylinux2010 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
  pip download --only-binary=:all: --python-version 3.11 --implementation cp "${platforms[@]}" --platform any \
    --constraint "$checkout/constraints.txt" --dest "$wheels" --find-links "$wheels" "dgis[$extras]" pip
}

# What builds the wheel is pinned, too; older and newer pips take that from different variables
pip() {
  PIP_CONSTRAINT=$here/build-constraints.txt PIP_BUILD_CONSTRAINT=$here/build-constraints.txt "$python" -m pip --quiet --disable-pip-version-check "$@" \
    >>"$work/pip.log" 2>&1 || { grep -i error "$work/pip.log" | tail -5 >&2; fail "the wheels could not be made; see $work/pip.log"; }
}

# All that goes into the guest, as one tar: in mode unshare the hooks may not read the files of this user
stage() {
  local root=$work/stage
  mkdir -p "$root"/build/debs "$root"/usr/lib/systemd/system "$root"/opt/dgis
  cp -r "$here/files/." "$root/"
  cp "$here"/units/* "$root/usr/lib/systemd/system/"
  cp -r "$here/initramfs/init" "$here/modules.txt" "$here/hooks/guest.sh" "$root/build/"
  mv "$work/wheels" "$root/opt/dgis/wheels"
  mkdir -p "$root/build/initramfs"
  mv "$root/build/init" "$root/build/initramfs/init"
  tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" \
    -cf "$work/stage.tar" .
}

bootstrap() {
  local slim=() path
  for path in doc info lintian locale man i18n bash-completion; do slim+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
  slim+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
  slim+=(--dpkgopt='path-exclude=/lib/udev/hwdb.d/*' --dpkgopt='path-exclude=/usr/lib/udev/hwdb.d/*')
  # shellcheck disable=SC2016  # the hooks' own variables
  (cd "$work" && mmdebstrap --mode="$mode" --variant=minbase --include="$(listed "$here/packages.txt")" \
    --aptopt='APT::Install-Recommends "false"' "${slim[@]}" --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --customize-hook='tar-in stage.tar /' \
    --customize-hook='export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; cd "$1/build/debs" && apt-get -qq download busybox-static cpio \
      "$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: *\(linux-image-[0-9]\)/\1/p" | head -1)"' \
    --customize-hook='chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
      SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" /build/guest.sh' \
    --customize-hook='test -e "$MMDEBSTRAP_APT_CONFIG"' \
    --customize-hook='copy-out /build/out .' \
    --customize-hook='rm -rf "$1/build"' \
    "$suite" root.tar "$sources" >mmdebstrap.log 2>&1) || {
    grep -E '^(E|W|dpkg): |error|: no module' "$work/mmdebstrap.log" | tail -15 >&2 || true
    fail "Debian could not be set up; the whole story is in $work/mmdebstrap.log"
  }
}

filesystem() {
  local run=(bash "$here/hooks/filesystem.sh" "$work/root.tar" "$work/disk.raw" "$size")
  if [ "$(id -u)" = 0 ]; then "${run[@]}"; else unshare --map-auto --map-root-user "${run[@]}"; fi
}

manifest() {
  "$python" - "$work" "$SOURCE_DATE_EPOCH" "$suite" <<'P'
import hashlib, json, sys
from pathlib import Path

work, epoch, suite = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def digest(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

packages = dict(line.split("\t") for line in (work / "out/packages.tsv").read_text().splitlines())
kernel = (work / "out/kernel").read_text().strip()
wheels = sorted((work / "stage/opt/dgis/wheels").glob("*.whl"))
made = {name: work / place for name, place in
        (("disk.raw", "disk.raw"), ("vmlinuz", "out/vmlinuz"), ("initrd.gz", "out/initrd.gz"))}
print(json.dumps({
    "release": (work / "out/release").read_text().strip(), "suite": suite, "kernel": kernel, "source_date_epoch": epoch,
    "root_label": "dgisroot", "files": {name: {"bytes": path.stat().st_size, "sha256": digest(path)} for name, path in made.items()},
    "wheels": {path.name: digest(path) for path in wheels}, "packages": packages,
}, indent=1, sort_keys=True))
P
}

parse "$@"
check_tools
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C.UTF-8
umask 022
sources=$(realpath "${sources:-$(default_sources)}")
[ -n "$mode" ] || { if [ "$(id -u)" = 0 ]; then mode=auto; else mode=unshare; fi; }
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$checkout" log -1 --format=%ct 2>/dev/null || echo 1735689600)}
export SOURCE_DATE_EPOCH
out=$(mkdir -p "$out" && realpath "$out")
work=$out/.dgis-build
rm -rf "$work"
mkdir "$work"
say "wheels"
make_wheels "$work/wheels"
stage
say "Debian $suite"
bootstrap
say "root file system"
filesystem
say "manifest"
manifest > "$work/manifest.json"
mv "$work"/disk.raw "$work"/out/vmlinuz "$work"/out/initrd.gz "$work"/manifest.json "$out/"
mkdir -p "$out/wheels"
rm -f "$out"/wheels/*.whl
mv "$work"/stage/opt/dgis/wheels/*.whl "$out/wheels/"
[ -n "$keep" ] || rm -rf "$work"
say "$out: $(du -h --apparent-size "$out/disk.raw" | cut -f1) disk of which $(du -h "$out/disk.raw" | cut -f1) are used, done"

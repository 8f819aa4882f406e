#!/bin/bash
# filesystem.sh ROOT.tar DISK.raw SIZE: an ext4 image of a tar's files without mounting anything. Run as root, or in a user
# namespace of its own. The same tar gives the same bytes: fixed ids, names in order, times from the tar or from
# SOURCE_DATE_EPOCH (mke2fs 1.47.0 would copy the change and access times of the unpacked files).
set -euo pipefail
tar=$1 disk=$2 size=$3
here=$(dirname "$(realpath "$0")")
export LC_ALL=C E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH MKE2FS_CONFIG=$here/../mke2fs.conf
unpacked=$(mktemp -d "$disk.XXXXXX")
trap 'rm -rf "$unpacked"' EXIT
chmod 755 "$unpacked"
tar -C "$unpacked" -xpf "$tar" --numeric-owner --xattrs --xattrs-include='security.capability' --exclude='./dev/*'
if [ "$size" = auto ]; then # room for a second release, so that an upgrade fits
  size=$(($(du -s --apparent-size -m "$unpacked" | cut -f1) * 115 / 100 + 700))M
fi
rm -f "$disk"
mke2fs -q -F -t ext4 -L dgisroot -U 6f2a1d3c-52c1-4d0f-9a57-d61d5700c0de -E hash_seed=0d0c0de0-1d15-4a57-8d61-d5700c0de001 \
  -d "$unpacked" "$disk" "$size" >/dev/null
touch -h -d "@$SOURCE_DATE_EPOCH" "$unpacked"
used=$(dumpe2fs -h "$disk" 2>/dev/null | awk '/^Inode count/ {all = $3} /^Free inodes/ {free = $3} END {print all - free}')
moment="@$SOURCE_DATE_EPOCH"
{
  for ((inode = 1; inode <= used; inode++)); do
    for field in atime ctime crtime; do echo "set_inode_field <$inode> $field $moment"; done
    for field in atime ctime crtime mtime; do echo "set_inode_field <$inode> ${field}_extra 0"; done
  done
} | debugfs -w -f - "$disk" >"$disk.debugfs" 2>&1
if grep -v '^debugfs' "$disk.debugfs"; then echo "debugfs could not set the times" >&2; exit 1; fi
rm "$disk.debugfs"
e2fsck -fn "$disk" >/dev/null 2>&1 || { echo "e2fsck finds faults in $disk" >&2; exit 1; }

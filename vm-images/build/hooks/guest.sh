#!/bin/bash
# Inside the new system (chroot): users, kernel modules, initramfs, the release, what starts; then away with what differs
# from build to build. /build holds the recipe, the .deb files of kernel and initramfs tools, and goes away at the end.
set -euo pipefail
cd /build
kernel=/build/kernel
mkdir -p out "$kernel" tools
for deb in debs/linux-image-*.deb; do dpkg-deb -x "$deb" "$kernel"; done
for deb in debs/busybox-static_*.deb debs/cpio_*.deb; do dpkg-deb -x "$deb" tools; done
version=$(basename "$kernel"/lib/modules/*)
depmod -b "$kernel" "$version"
echo "$version" > out/kernel
mv "$kernel/boot/vmlinuz-$version" out/vmlinuz

# A module and all it depends on, as paths below /
with_dependencies() {
  modprobe -d "$kernel" -S "$version" --show-depends "$1" | awk '$1 == "insmod" {print $2}'
}

wanted() { # KIND...: the modules of these kinds in modules.txt
  local kind name
  while read -r kind name; do
    case " $* " in *" $kind "*) ;; *) continue ;; esac
    case $kind in
      dir) find "$kernel/lib/modules/$version/kernel/$name" -name '*.ko' -printf '%f\n' | sort | sed 's/\.ko$//' |
        while read -r each; do with_dependencies "$each"; done ;;
      maybe) with_dependencies "$name" 2>/dev/null || echo "no module $name in this kernel" >&2 ;;
      *) with_dependencies "$name" || { echo "modules.txt: no module $name in kernel $version" >&2; return 1; } ;;
    esac
  done < <(sed -e 's/#.*//' -e '/^ *$/d' modules.txt)
}

kernel_modules() {
  wanted initrd name maybe dir | sort -u > modules.list
  while read -r file; do install -D -m 644 "$file" "/lib/modules/$version/${file#*"/modules/$version/"}"; done < modules.list
  cp "$kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "/lib/modules/$version/"
  depmod "$version"
}

initramfs() {
  local root=/build/initramfs
  mkdir -p "$root"/{bin,dev,proc,root,sys,modules}
  cp tools/bin/busybox "$root/bin/"
  wanted initrd | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$root/modules/"
    basename "$file" >> "$root/modules/order"
  done
  chmod -R u=rwX,go=rX "$root"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$root" && find . | LC_ALL=C sort | ../tools/bin/cpio --quiet -o -H newc --reproducible -R 0:0) | gzip -n -9 > out/initrd.gz
}

release() {
  local version
  /usr/sbin/dgis-upgrade --install-only /opt/dgis/wheels
  version=$(ls /opt/dgis/releases)
  ln -s "releases/$version" /opt/dgis/current
  for command in dgis dgis-catalog dgis-storage dgis-certs; do ln -s "/opt/dgis/current/bin/$command" /usr/local/bin/; done
  echo "$version" > out/release
}

starts() {
  systemctl -q enable systemd-networkd systemd-resolved systemd-timesyncd ssh dgis-data.service dgis-health.timer
  systemctl -q disable haproxy.service nftables.service
  # Jobs that a small guest does not need at its boot, or that would reach out on their own
  systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer proc-sys-fs-binfmt_misc.automount cloud-init-hotplugd.socket
}

identity_of_nobody() {
  rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
  : > /etc/machine-id
  echo dgis-guest > /etc/hostname
  printf '127.0.0.1 localhost\n127.0.1.1 dgis-guest\n::1 localhost ip6-localhost ip6-loopback\n' > /etc/hosts
  printf 'LABEL=dgisroot / ext4 noatime,x-systemd.growfs 0 1\n' > /etc/fstab
  printf 'LANG=C.UTF-8\n' > /etc/default/locale
  ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
}

# Caches, logs, backups and dates that say when this build was. Hands off /tmp, which mmdebstrap clears itself: its apt
# configuration lies there, and without it the apt-get that it calls last would clear this machine's package lists.
leave_no_trace() {
  local day=$((SOURCE_DATE_EPOCH / 86400))
  sed -i -E "s/^([^:]*:[^:]*):[0-9]+:/\1:$day:/" /etc/shadow
  rm -f /etc/{passwd,group,shadow,gshadow,subuid,subgid}- /etc/.pwd.lock /etc/udev/hwdb.bin /usr/lib/udev/hwdb.bin
  rm -rf /var/cache/{apt,ldconfig,debconf}/* /var/lib/apt/lists/* /var/log/* /var/tmp/* /root/.cache
  mkdir -p /var/log/journal
  find /var/lib/dpkg /var/lib/ucf -name '*-old' -delete
}

systemd-sysusers dgis.conf
systemd-tmpfiles --create dgis.conf
kernel_modules
initramfs
release
starts
identity_of_nobody
dpkg-query -W -f '${Package}\t${Version}\n' > out/packages.tsv
leave_no_trace

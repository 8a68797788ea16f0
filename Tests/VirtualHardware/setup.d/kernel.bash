# Guest kernels: `tinyconfig` and a fragment, from Debian's newest source package.
#
# Debian's own kernels will not do: they are built without CONFIG_IOMMUFD. An entry holds the
# image, its configuration, its release and the uAPI headers of the same source (the ABI check
# compares the C shim with them).

# Raise it when the recipe below changes what it makes.
kernel_recipe=2

kernel_entry() { # ARCHITECTURE
  local source
  source=$(linux_source_name) || return
  echo "$cache/kernel-$1-$source-$(echo "$kernel_recipe" | digest "$here/kernel-$1.config" -)"
}

# What the kernel is built from: the tarball that the user named, or the newest in the cache.
linux_source_name() {
  local found
  if [ -n "${IOMMU_LINUX_TARBALL:-}" ]; then
    [ -f "$IOMMU_LINUX_TARBALL" ] || die "IOMMU_LINUX_TARBALL: no such file: $IOMMU_LINUX_TARBALL"
    # Its name is no version: a changed file is another source.
    echo "own-$(stat --format '%n %s %Y' "$IOMMU_LINUX_TARBALL" | digest -)"
  else
    found=$(compgen -G "$cache/linux-source-*.tar.xz" | sort -V | tail -n 1)
    [ -n "$found" ] || { echo none; return; }
    basename "$found" .tar.xz
  fi
}

# The tarball's path; downloads it when there is none yet.
linux_tarball() {
  local package version made="$unfinished/linux-source"
  if [ -n "${IOMMU_LINUX_TARBALL:-}" ]; then
    echo "$IOMMU_LINUX_TARBALL"
    return
  fi
  if [ "$(linux_source_name)" = none ]; then
    say "fetching the Linux source"
    # A release's backports are where new kernels go; testing and unstable have them too.
    private_apt "stable stable-backports testing unstable" "$(dpkg --print-architecture)"
    package=$(linux_package)
    version=$(candidate "$package")
    fetch "$made" "$package"
    dpkg-deb --fsys-tarfile "$made"/*.deb |
      tar --extract --to-stdout "./usr/src/$package.tar.xz" > "$made/tarball"
    publish "$made/tarball" "$cache/${package}_${version//:/%}.tar.xz"
    rm -r "$made"
  fi
  echo "$cache/$(linux_source_name).tar.xz"
}

# 7.2 is the version that this was written for; else the newest, if it has what is tested here.
linux_package() {
  local found
  found=$(newest 'linux-source-7\.2')
  [ -n "$found" ] || found=$(newest 'linux-source-[0-9]+\.[0-9]+')
  [ -n "$found" ] || die "the mirror has no linux-source package; name a tarball in IOMMU_LINUX_TARBALL"
  [ "$(printf '%s\n' 6.13 "${found#linux-source-}" | sort -V | head -n 1)" = 6.13 ] ||
    die "Linux 6.13 or newer is needed; the mirror has $found. Name a tarball in IOMMU_LINUX_TARBALL"
  echo "$found"
}

setup_kernel() { # ARCHITECTURE
  local architecture=$1 made="$unfinished/kernel" source="$unfinished/linux" build="$unfinished/build"
  local image fragment="$here/kernel-$1.config" compiler_prefix='' tarball entry
  ensure make:make gcc:gcc flex:flex bison:bison bc:bc xz:xz-utils rsync:rsync perl:perl \
    /usr/include/gelf.h:libelf-dev '/usr/include/openssl/ssl.h:libssl-dev'
  case $architecture in
    x86_64) image=arch/x86/boot/bzImage ;;
    arm64) image=arch/arm64/boot/Image ;;
  esac
  if [ "$architecture" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then
    compiler_prefix=aarch64-linux-gnu-
  elif [ "$architecture" = x86_64 ] && [ "$(uname -m)" != x86_64 ]; then
    compiler_prefix=x86_64-linux-gnu-
  fi
  [ -z "$compiler_prefix" ] || ensure "${compiler_prefix}gcc:gcc-${compiler_prefix%-}"

  tarball=$(linux_tarball)
  entry=$(kernel_entry "$architecture")
  [ ! -e "$entry" ] || return 0
  mkdir -p "$made" "$source" "$build"
  logged "unpacking $(basename "$tarball")" tar --extract --file "$tarball" --directory "$source" \
    --strip-components=1 --no-same-owner
  # Neither a name nor the time of the build shows in the guest's /proc/version.
  local make=(make -C "$source" "O=$build" "ARCH=$architecture" "CROSS_COMPILE=$compiler_prefix"
    KBUILD_BUILD_USER=guest KBUILD_BUILD_HOST=guest "KBUILD_BUILD_TIMESTAMP=1970-01-01")
  logged "configuring the $architecture kernel" configure_kernel
  [ ! -s "$unfinished/dropped" ] || say "this source does not take: $(xargs < "$unfinished/dropped")"
  logged "building the $architecture kernel (some minutes)" "${make[@]}" -j"$(nproc)" "${image##*/}"
  logged "installing its headers" "${make[@]}" headers_install "INSTALL_HDR_PATH=$made"

  cp "$build/$image" "$made/image"
  cp "$build/.config" "$made/config"
  "${make[@]}" -s --no-print-directory kernelrelease > "$made/release"
  publish "$made" "$entry"
}

# Uses the variables of setup_kernel. Kconfig drops in silence what this source does not know or
# whose dependencies are not met; older and newer sources differ a little, so that is only said.
configure_kernel() {
  "${make[@]}" tinyconfig &&
    ARCH=$architecture "$source/scripts/kconfig/merge_config.sh" -m -O "$build" "$build/.config" "$fragment" &&
    "${make[@]}" olddefconfig || return
  grep -vxFf "$build/.config" "$fragment" | grep -v '^#' > "$unfinished/dropped" || true
}

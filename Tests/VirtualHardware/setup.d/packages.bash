# Debian packages: those installed on this machine, and those only unpacked into the cache.
#
# Newer suites than the machine's own are read with apt configurations that live in a
# temporary folder. The machine's sources are never touched, and its mirror is used.

# ensure WHAT:PACKAGE…: installs the packages whose command, or file, is missing.
ensure() {
  local pair missing=()
  for pair; do present "${pair%%:*}" || missing+=("${pair##*:}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get > /dev/null || die "missing: ${missing[*]} (names of Debian packages). \
There is no apt here; install their equivalents and run this again."
  [ "$(id -u)" = 0 ] || command -v sudo > /dev/null || die "missing Debian packages: \
${missing[*]}. Installing them takes root, and there is no sudo; run as root: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  local options=(-qq -y --no-install-recommends -o DPkg::Lock::Timeout=600)
  as_root apt-get -qq update > /dev/null || true
  as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install "${missing[@]}" \
    > "$unfinished/install.log" 2>&1 < /dev/null || { tail -n 20 "$unfinished/install.log" >&2; die "apt-get could not install ${missing[*]}"; }
  for pair; do present "${pair%%:*}" || die "${pair##*:} was installed, but there is no ${pair%%:*}"; done
}

present() {
  case $1 in
    /*) compgen -G "$1" > /dev/null ;;
    *) command -v "$1" > /dev/null ;;
  esac
}

# The Debian mirror that this machine uses itself.
mirror() {
  if [ -n "${IOMMU_DEBIAN_MIRROR:-}" ]; then
    echo "$IOMMU_DEBIAN_MIRROR"
    return
  fi
  local found=
  if [ "$(release ID)" = debian ]; then
    # deb822 stanzas first, then one-line entries; the security archive is a different one.
    found=$(cat /etc/apt/sources.list.d/*.sources 2> /dev/null |
      awk -v RS= '!/Enabled: *no/ && !/-security/' | awk '$1 == "URIs:" { print $2; exit }')
    [ -n "$found" ] || found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2> /dev/null |
      sed -E 's/\[[^]]*\]//' | awk '$1 == "deb" && !/-security/ { print $2; exit }')
  fi
  [ -n "$found" ] || die "no Debian mirror in this machine's apt sources; name one in IOMMU_DEBIAN_MIRROR"
  echo "$found"
}

release() { (. /etc/os-release && eval "echo \${$1:-}"); }

# private_apt SUITES ARCHITECTURES: starts an apt configuration of its own for `apt_private`.
# SUITES that the mirror does not have are passed over.
private_apt() {
  local suites=$1 architectures=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  local mirror options suite
  command -v apt-get > /dev/null || die "this takes apt-get, which this machine lacks"
  ensure "$keyring:debian-archive-keyring"
  mirror=$(mirror)
  options="arch=${architectures// /,} signed-by=$keyring"
  apt_folder="$unfinished/apt"
  rm -rf "$apt_folder"
  mkdir -p "$apt_folder/lists/partial" "$apt_folder/archives/partial"
  for suite in $suites; do echo "deb [$options] $mirror $suite main"; done > "$apt_folder/sources.list"
  apt_options=(
    -qq -o "Dir::Etc::SourceList=$apt_folder/sources.list" -o Dir::Etc::SourceParts=-
    -o "Dir::State::Lists=$apt_folder/lists" -o "Dir::Cache::Archives=$apt_folder/archives"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User="$(id -un)"
    -o Acquire::Languages=none -o APT::Get::Assume-Yes=true -o APT::Install-Recommends=false
  )
  for architecture in $architectures; do apt_options+=(-o "APT::Architectures::=$architecture"); done
  apt-get "${apt_options[@]}" update > "$apt_folder/update.log" 2>&1 || true
}

# newest PACKAGE ARCHITECTURE: its version in the suites of private_apt, or nothing.
candidate() {
  apt-cache "${apt_options[@]}" policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# fetch FOLDER PACKAGE…: downloads just these, as .deb files.
fetch() {
  local folder=$1
  shift
  mkdir -p "$folder"
  (cd "$folder" && apt-get "${apt_options[@]}" download "$@") > "$apt_folder/download.log" 2>&1 ||
    { cat "$apt_folder/download.log" >&2; die "could not download $*"; }
}

qemu_version() { { qemu-system-x86_64 --version && qemu-system-aarch64 --version; } 2> /dev/null | awk '{ print $4 }' | sort -V | head -n 1; }

# QEMU 10 is the first with a nested SMMUv3 and with first-stage tables in VT-d.
qemu_ready() {
  local version
  version=$(qemu_version)
  [ "${version%%.*}" -ge 10 ] 2> /dev/null && compgen -G "$qemu_firmware" > /dev/null
}
qemu_firmware='/usr/share/qemu-efi-aarch64/QEMU_EFI.fd'

setup_qemu() {
  ! qemu_ready || return 0
  local packages='qemu-system-x86 qemu-system-arm qemu-efi-aarch64'
  if [ "$(release ID) $(release VERSION_ID)" = "debian 12" ]; then
    # The release's own is 7.2; its backports have 10.
    private_apt "bookworm bookworm-backports" "$(dpkg --print-architecture)"
    # shellcheck disable=SC2086
    logged "installing $packages" as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get "${apt_options[@]}" -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root \
      --target-release bookworm-backports install $packages
  else
    ensure qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm \
      "$qemu_firmware:qemu-efi-aarch64"
  fi
  qemu_ready || die "QEMU 10 or newer is needed, with its arm64 firmware; this system has $(qemu_version)"
}

busybox_entry() { echo "$cache/busybox-1"; }

# A shell for the guests. Unpacked, not installed: the package displaces `busybox`.
setup_busybox() {
  local made="$unfinished/busybox" architecture entry
  entry=$(busybox_entry)
  [ ! -e "$entry" ] || return 0
  mkdir -p "$made"
  say "fetching busybox"
  private_apt stable "amd64 arm64"
  fetch "$made/packages" busybox-static:amd64 busybox-static:arm64
  for architecture in amd64:x86_64 arm64:arm64; do
    dpkg-deb --fsys-tarfile "$made"/packages/*_"${architecture%:*}".deb |
      tar --extract --to-stdout --wildcards './*bin/busybox' > "$made/busybox-${architecture#*:}"
    chmod +x "$made/busybox-${architecture#*:}"
    [ -s "$made/busybox-${architecture#*:}" ] || die "no busybox in busybox-static:${architecture%:*}"
  done
  rm -r "$made/packages"
  # The same package version has the same applets on both.
  "$made/busybox-$(uname -m | sed s/aarch64/arm64/)" --list | grep -vx busybox > "$made/applets"
  publish "$made" "$entry"
}

# Debian packages: those installed on this machine, and those only unpacked into the cache.
#
# Newer suites than the machine's own are read with apt configurations that live in a
# temporary folder. The machine's sources are never touched, and its mirror is used.

# ensure WHAT:PACKAGE…: installs the packages whose command, or file, is missing.
ensure() {
  local pair log missing=()
  for pair; do present "${pair%%:*}" || missing+=("${pair##*:}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get > /dev/null || die "missing: ${missing[*]} (names of Debian packages). \
There is no apt here; install their equivalents and run this again."
  [ "$(id -u)" = 0 ] || command -v sudo > /dev/null || die "missing Debian packages: \
${missing[*]}. Installing them takes root, and there is no sudo; run as root: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  log=$(mktemp)
  as_root apt-get -qq update > /dev/null || true
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=600 install "${missing[@]}" > "$log" 2>&1 < /dev/null ||
    { tail -n 20 "$log" >&2; rm "$log"; die "apt-get could not install ${missing[*]}"; }
  rm "$log"
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

# private_apt SUITES ARCHITECTURE: reads these suites' package lists, to be used by the functions
# below as by a machine of that architecture. A suite that the mirror lacks is passed over.
private_apt() {
  local suites=$1 architecture=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror suite
  command -v apt-get > /dev/null || die "this takes apt-get, which this machine lacks"
  ensure "$keyring:debian-archive-keyring"
  mirror=$(mirror)
  apt_folder="$unfinished/apt"
  rm -rf "$apt_folder"
  mkdir -p "$apt_folder/lists/partial" "$apt_folder/archives/partial"
  : > "$apt_folder/status"
  for suite in $suites; do
    echo "deb [arch=$architecture signed-by=$keyring] $mirror $suite main"
  done > "$apt_folder/sources.list"
  apt_options=(
    -qq -o "Dir::Etc::SourceList=$apt_folder/sources.list" -o Dir::Etc::SourceParts=-
    -o "Dir::State::Lists=$apt_folder/lists" -o "Dir::State::Status=$apt_folder/status"
    -o "Dir::Cache::Archives=$apt_folder/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o "APT::Sandbox::User=$(id -un)"
    -o Acquire::Languages=none -o APT::Get::Assume-Yes=true -o APT::Install-Recommends=false
  )
  apt-get "${apt_options[@]}" update > "$apt_folder/log" 2>&1 || true
}

# candidate PACKAGE: the version that apt would take, or nothing.
candidate() {
  apt-cache "${apt_options[@]}" policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

# newest PATTERN: of the packages with such a name, the one with the highest number in it.
newest() { apt-cache "${apt_options[@]}" pkgnames | grep -xE "$1" | sort -V | tail -n 1; }

# fetch FOLDER PACKAGE…: downloads just these. fetch_closure: with all that they depend on.
fetch() {
  local folder=$1
  shift
  mkdir -p "$folder"
  fetching "$*" env --chdir="$folder" apt-get "${apt_options[@]}" download "$@"
}

fetch_closure() {
  local folder=$1
  shift
  mkdir -p "$folder/partial"
  fetching "$*" apt-get "${apt_options[@]}" -o "Dir::Cache::Archives=$folder" --download-only install "$@"
}

fetching() { # WHAT COMMAND…
  local what=$1
  shift
  "$@" > "$apt_folder/log" 2>&1 < /dev/null || { tail -n 20 "$apt_folder/log" >&2; die "could not download $what"; }
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
      apt-get "${apt_options[@]}" -o Dir::State::Status=/var/lib/dpkg/status \
      -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root \
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
  local made="$unfinished/busybox" architecture name entry
  entry=$(busybox_entry)
  [ ! -e "$entry" ] || return 0
  say "fetching busybox"
  mkdir -p "$made"
  for architecture in amd64:x86_64 arm64:arm64; do
    name="busybox-${architecture#*:}"
    private_apt stable "${architecture%:*}"
    fetch "$unfinished/$name" busybox-static
    dpkg-deb --fsys-tarfile "$unfinished/$name"/*.deb |
      tar --extract --to-stdout --wildcards './*bin/busybox' > "$made/$name"
    chmod +x "$made/$name"
  done
  # The same version has the same applets on both.
  "$made/busybox-$(uname -m | sed s/aarch64/arm64/)" --list | grep -vx busybox > "$made/applets"
  publish "$made" "$entry"
}

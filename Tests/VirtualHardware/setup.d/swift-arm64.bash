# A Swift compiler that runs here and builds for arm64, Foundation included.
#
# Debian's newer suites have Swift for both architectures. The compiler comes with the C library
# it was built for, as a file system of its own (`tree`, entered by runner/in-toolchain; no
# root, no chroot that must be kept up to date). What it compiles against is a Swift SDK bundle
# (`sdk`): arm64's static standard library beside a sysroot of arm64 packages. A module is read
# only by the compiler version that wrote it, so this machine's own Swift cannot use the bundle.
#
# Packages are unpacked, not installed, and what no build reads is left out: 1.4 of 3.4 GB stay.

# Raise it when the recipe below changes what it makes.
swift_recipe=1

swift_entry() { echo "$cache/swift-arm64-$swift_recipe"; }

# What takes part in no build: debuggers, editors' services, documents, other platforms.
swift_unused=(
  '*lldb*' '*sourcekit*' '*SourceKit*' '*clangd' '*libclang.so*' '*libLTO*' '*docc*' '*swift-format'
  '*llvm-obj*' '*llvm-cov' '*llvm-prof*' '*llvm-symbolizer' '*wasm*' '*FrameworkABIBaseline*' '*/migrator/*'
  '*/embedded/*' '*swift-build-sdk-interfaces' '*/doc/*' '*/man/*' '*/locale/*'
)

setup_swift() {
  local entry made="$unfinished/swift" suite version=none standard_library
  entry=$(swift_entry)
  [ ! -e "$entry" ] || return 0
  [ "$(uname -m)" = x86_64 ] || die "the arm64 toolchain is made for x86-64 machines only"
  ensure unshare:util-linux xz:xz-utils
  setup_busybox

  # The oldest suite with Swift 6.2: the least to change under a cached entry's successor.
  for suite in stable stable-backports testing unstable; do
    private_apt "$suite" amd64
    version=$(candidate swiftlang)
    [ -z "$version" ] || dpkg --compare-versions "$version" lt 6.2 || break
    version=
  done
  [ -n "$version" ] || die "no suite of the Debian mirror has Swift 6.2 or newer"
  say "fetching Swift $version and what it needs (750 MB)"
  standard_library=$(newest 'libstdc\+\+-[0-9]+-dev')
  fetch_closure "$unfinished/amd64" swiftlang "$standard_library" libc6-dev
  private_apt "$suite" arm64
  fetch "$unfinished/arm64" swiftlang
  fetch_closure "$unfinished/sysroot" "$standard_library" libc6-dev libpci-dev

  say "unpacking Swift"
  swift_tree "$made/tree" &
  local tree=$!
  swift_sdk "$made/sdk/guest-arm64.artifactbundle"
  wait "$tree"
  echo "$version" > "$made/version"
  "$here/runner/in-toolchain" "$made" "$made/sdk" swift --version > "$unfinished/log" 2>&1 ||
    { cat "$unfinished/log" >&2; die "the unpacked Swift does not run here. It takes a mount \
namespace: where ordinary users may not make one, run this as root"; }
  publish "$made" "$entry"
}

swift_tree() { # FOLDER
  local folder=$1 package
  mkdir -p "$folder/usr"
  for package in "$unfinished"/amd64/*.deb; do
    case ${package##*/} in
      # Dependencies of the packages, not of what is used of them.
      gcc-[0-9]*-x86* | cpp-* | *san[0-9]*_* | debconf_* | perl* | libperl* | libpython* | tzdata* | libicu*) ;;
      *) unpack "$package" "$folder" "${swift_unused[@]}" '*/swift_static/*' ;;
    esac
  done
  # SwiftPM wants a shell and env.
  cp "$(busybox_entry)/busybox-x86_64" "$folder/usr/bin/busybox"
  ln -sf busybox "$folder/usr/bin/sh"
  ln -sf busybox "$folder/usr/bin/env"
}

swift_sdk() { # BUNDLE
  local bundle=$1 root="$1/sysroot" package
  mkdir -p "$root/usr" "$bundle/arm64" "$unfinished/arm64-swift"
  ln -s usr/lib "$root/lib"
  for package in "$unfinished"/sysroot/*.deb; do
    case ${package##*/} in
      *san[0-9]*_*) ;;
      *) unpack "$package" "$root" '*/doc/*' '*/man/*' ;;
    esac
  done
  unpack "$unfinished"/arm64/swiftlang_*.deb "$unfinished/arm64-swift" "${swift_unused[@]}" '*/swift/bin/*' '*.so*'
  for package in clang swift swift_static; do
    mv "$unfinished/arm64-swift/usr/libexec/swift/lib/$package" "$root/usr/lib/"
  done
  cat > "$bundle/info.json" << 'JSON'
{
  "schemaVersion": "1.0",
  "artifacts": {
    "guest-arm64": {
      "type": "swiftSDK",
      "version": "1",
      "variants": [{
        "path": "arm64",
        "supportedTriples": ["x86_64-unknown-linux-gnu", "x86_64-pc-linux-gnu"]
      }]
    }
  }
}
JSON
  cat > "$bundle/arm64/swift-sdk.json" << 'JSON'
{
  "schemaVersion": "4.0",
  "targetTriples": {
    "aarch64-unknown-linux-gnu": {
      "sdkRootPath": "../sysroot",
      "swiftResourcesPath": "../sysroot/usr/lib/swift",
      "swiftStaticResourcesPath": "../sysroot/usr/lib/swift_static",
      "toolsetPaths": ["toolset.json"]
    }
  }
}
JSON
  echo '{"schemaVersion": "1.0", "swiftCompiler": {"extraCLIOptions": ["-use-ld=lld"]}}' > "$bundle/arm64/toolset.json"
}

# unpack PACKAGE FOLDER PATTERN…: without what matches a pattern.
unpack() {
  local package=$1 folder=$2 pattern excluded=()
  shift 2
  for pattern; do excluded+=("--exclude=$pattern"); done
  dpkg-deb --fsys-tarfile "$package" |
    tar --extract --directory "$folder" --keep-directory-symlink --no-same-owner "${excluded[@]}"
}

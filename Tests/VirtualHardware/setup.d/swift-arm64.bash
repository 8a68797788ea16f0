swift_entry() { echo "$cache/swift-arm64-none"; }
setup_swift() { die "not yet"; }

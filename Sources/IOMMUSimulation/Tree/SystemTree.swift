import IOMMU

/// The files of the simulated machine: what is left of sysfs, procfs and /dev when only PCI and the IOMMU matter.
///
/// Attributes whose contents change are computed when read; see ``KernelState/contents(of:)``.
struct SystemTree {
  /// A file whose contents or effect are the kernel's.
  enum Attribute: Hashable {
    case text(String)
    case config(PCIAddress)
    case resource(PCIAddress)
    case driverOverride(PCIAddress)
    case bind(driver: String), unbind(driver: String)
    case probe
    case removeDevice(PCIAddress)
    case processStatus
    /// Written text is taken and has no effect.
    case ignored(String)
  }

  enum Node: Hashable {
    case directory
    case file(Attribute, mode: UInt32)
    case link(String)
    case node(DeviceNode)
  }

  /// What a device node opens.
  enum DeviceNode: Hashable {
    case iommufd, container, group(Int), device(PCIAddress)
  }

  private(set) var nodes: [String: Node] = ["/": .directory]
  private var children: [String: Set<String>] = [:]

  /// Adds a node and the directories above it.
  mutating func add(_ path: String, _ node: Node) {
    let parent = Self.parent(path)
    if parent != path, nodes[parent] == nil { add(parent, .directory) }
    nodes[path] = node
    if parent != path { children[parent, default: []].insert(Self.name(path)) }
  }

  mutating func addText(_ path: String, _ text: String, mode: UInt32 = 0o444) {
    add(path, .file(.text(text + "\n"), mode: mode))
  }

  /// Removes a node and everything below it.
  mutating func remove(_ path: String) {
    for child in children[path] ?? [] { remove(path + "/" + child) }
    children[path] = nil
    nodes[path] = nil
    children[Self.parent(path)]?.remove(Self.name(path))
  }

  /// The names in a directory, sorted.
  func names(in path: String) -> [String] { (children[path] ?? []).sorted() }

  /// The path without links, and what is there. ENOENT, ENOTDIR or ELOOP (by number) as the kernel answers.
  func resolve(_ path: String, followLast: Bool = true) throws(Errno) -> (path: String, node: Node) {
    var rest = Array(path.split(separator: "/").map(String.init).reversed())
    var current: [String] = []
    var hops = 0
    while let component = rest.popLast() {
      if component == "." { continue }
      if component == ".." {
        if !current.isEmpty { current.removeLast() }
        continue
      }
      let parent = "/" + current.joined(separator: "/")
      if case .file? = nodes[parent] { throw .notDirectory }
      if case .node? = nodes[parent] { throw .notDirectory }
      let next = (parent == "/" ? "" : parent) + "/" + component
      guard let node = nodes[next] else { throw .noEntry }
      if case .link(let target) = node, followLast || !rest.isEmpty {
        hops += 1
        guard hops <= 40 else { throw Errno(rawValue: 40) }
        if target.hasPrefix("/") { current = [] }
        rest += target.split(separator: "/").map(String.init).reversed()
      } else {
        current.append(component)
      }
    }
    let resolved = "/" + current.joined(separator: "/")
    return (resolved, nodes[resolved]!)
  }

  private static func parent(_ path: String) -> String {
    guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return "/" }
    return String(path[..<slash])
  }

  private static func name(_ path: String) -> String {
    String(path[path.index(after: path.lastIndex(of: "/")!)...])
  }
}

import IOMMU

/// What a descriptor of the simulated kernel refers to.
enum OpenFile {
  case iommufd(IOMMUFDContext)
  case container(Container)
  case group(GroupFile)
  case device(DeviceFile)
}

/// An open `/dev/iommu`: objects in one number space. Bound devices keep it after its descriptor is closed.
final class IOMMUFDContext {
  enum Object {
    case ioas(IOAS)
    case pageTable(HWPageTable)
    case device(DeviceState)
    case viommu(VIOMMU)
    case vdevice(VDevice)
    case eventQueue(VEventQueue)
  }
  /// The descriptor, and one for each bound device and each open event queue.
  var references = 1
  var objects: [UInt32: Object] = [:]

  /// Adds an object under the lowest free id, from 1 on, as the kernel's allocator does.
  func add(_ object: Object) -> UInt32 {
    var id: UInt32 = 1
    while objects[id] != nil { id += 1 }
    objects[id] = object
    return id
  }
}

/// An open `/dev/vfio/vfio`. Its groups keep it after its descriptor is closed.
final class Container {
  var groups: [Int] = []
  /// The type1 back end, from SET_IOMMU until the last group leaves.
  var backend: Type1Backend?
}

/// An open `/dev/vfio/N`.
final class GroupFile {
  let group: GroupState
  /// The descriptor, and one for each open device.
  var references = 1
  init(_ group: GroupState) { self.group = group }
}

/// An open device: its own node, or by way of its group.
final class DeviceFile {
  let device: DeviceState
  /// The group's file, nil for the device's own node.
  let groupFile: GroupFile?
  /// The iommufd and the id it is bound under.
  var binding: (context: IOMMUFDContext, id: UInt32)?
  /// Whether ioctls other than BIND are answered.
  var isUsable: Bool

  init(_ device: DeviceState, groupFile: GroupFile?) {
    (self.device, self.groupFile, isUsable) = (device, groupFile, groupFile != nil)
  }
}

/// The descriptors of the simulated kernel. Numbers are never used again, so that use after close is EBADF.
struct DescriptorTable {
  private(set) var files: [Int32: OpenFile] = [:]
  /// Far above what a process has open, so that no real descriptor is taken for a simulated one.
  static let first: Int32 = 0x4000_0000
  private var next = first

  static func isSimulated(_ descriptor: Int32) -> Bool { descriptor >= first }

  mutating func add(_ file: OpenFile) -> Int32 {
    defer { next += 1 }
    files[next] = file
    return next
  }

  mutating func remove(_ descriptor: Int32) -> OpenFile? { files.removeValue(forKey: descriptor) }
}

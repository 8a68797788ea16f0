import IOMMU
import Synchronization

/// A diary of what becomes of a device and of the objects that translate for it, in the order of the kernel's calls.
///
/// An entry is a few words: `bus master on`, `bus master off`, `interrupts off`, `attach`, `detach`, `invalidate`,
/// `unmap`, `destroy nested`, `close events`, and so on. A call that failed has its errno behind it.
extension FaultingKernel {
  /// Begins the diary, or begins it anew: with nothing in it, and knowing the objects that it knew.
  package func keepJournal() { plan.withLock { $0.journal.entries = [] } }

  /// What was done since.
  package var journal: [String] { plan.withLock { $0.journal.entries ?? [] } }

  /// Makes a call and enters it.
  func entering<Value>(
    _ text: String?, _ call: () throws(Errno) -> Value
  ) throws(Errno) -> Value {
    do throws(Errno) {
      let value = try call()
      if let text { plan.withLock { $0.journal.enter(text) } }
      return value
    } catch {
      if let text { plan.withLock { $0.journal.enter("\(text): \(error.name)") } }
      throw error
    }
  }

  /// Makes an object, which the diary calls by this name from now on.
  func making(
    _ name: String, in iommufd: Int32, _ call: () throws(Errno) -> UInt32
  ) throws(Errno) -> UInt32 {
    let id = try call()
    plan.withLock { $0.journal.objects[.init(iommufd: iommufd, id: id)] = name }
    return id
  }

  /// What a write to config space comes to; nil for none that the diary is about.
  func busMastering(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> String? {
    guard offset == UInt64(VFIOPCI.config) << 40 + 4, buffer.count >= 2 else { return nil }
    return unsafe buffer.load(as: UInt8.self) & 4 != 0 ? "bus master on" : "bus master off"
  }
}

/// The diary of a ``FaultingKernel``.
struct Journal {
  struct Object: Hashable { let iommufd: Int32, id: UInt32 }

  /// nil while none is kept.
  var entries: [String]?
  /// What they are, by descriptor and number.
  var objects: [Object: String] = [:]
  /// Open descriptors that are more than files.
  var descriptors: [Int32: String] = [:]

  mutating func enter(_ text: String) { entries?.append(text) }
}

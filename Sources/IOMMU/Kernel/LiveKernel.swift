import CIOMMU

/// Linux, through the C shim.
///
/// The methods are split by concern over the files `LiveKernel+….swift`; each is one call of the shim, whose result is
/// zero or positive, or the negative errno.
package final class LiveKernel: Kernel {
  package let name = "linux"
  package let isSimulated = false
  /// A directory with `sys/`, `proc/` and `dev/` to read instead of this machine's; empty for this machine.
  let root: String

  /// Reads files below `root`: a captured tree, whose devices can be looked at but not driven.
  package init(root: String = "") {
    var root = root
    while root.hasSuffix("/") { root.removeLast() }
    self.root = root
  }

  /// Turns a result of the shim into a value or an error.
  @inline(__always)
  @discardableResult
  func check(_ result: Int32) throws(Errno) -> Int32 { try Self.check(result) }

  @inline(__always)
  @discardableResult
  static func check(_ result: Int32) throws(Errno) -> Int32 {
    if result < 0 { throw Errno(rawValue: -result) }
    return result
  }

  @inline(__always)
  @discardableResult
  func check(_ result: Int64) throws(Errno) -> Int64 {
    if result < 0 { throw Errno(rawValue: Int32(truncatingIfNeeded: -result)) }
    return result
  }
}

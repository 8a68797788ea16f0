import Glibc
import IOMMU

/// Where text goes: stdout for data, stderr for messages.
package struct Console: Sendable {
  package let out: @Sendable (String) -> Void
  package let err: @Sendable (String) -> Void

  package init(out: @escaping @Sendable (String) -> Void, err: @escaping @Sendable (String) -> Void) {
    (self.out, self.err) = (out, err)
  }

  /// The process's own.
  package static let standard = Console(out: { write($0, 1) }, err: { write($0, 2) })

  /// Writes all of it. Data that cannot be written ends the program: a document cut short must not look like success.
  private static func write(_ text: String, _ descriptor: Int32) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      if count <= 0 {
        guard descriptor == 1 else { return }
        write("iommuctl: stdout: \(Errno(rawValue: errno))\n", 2)
        exit(1)
      }
      rest = rest.dropFirst(count)
    }
  }
}

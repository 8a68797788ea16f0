import Glibc
import Synchronization

/// Where text goes: stdout for data, stderr for messages.
struct Console: Sendable {
  let out: @Sendable (String) -> Void
  let err: @Sendable (String) -> Void

  /// The process's own.
  static let standard = Console(out: { write($0, 1) }, err: { write($0, 2) })

  /// Writes all of it, as far as anyone listens.
  private static func write(_ text: String, _ descriptor: Int32) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return }
      rest = rest.dropFirst(count)
    }
  }
}

/// A console that keeps what is written, for tests.
final class RecordedConsole: Sendable {
  private let texts = Mutex((out: "", err: ""))

  var console: Console {
    Console(
      out: { text in self.texts.withLock { $0.out += text } },
      err: { text in self.texts.withLock { $0.err += text } })
  }
  var out: String { texts.withLock(\.out) }
  var err: String { texts.withLock(\.err) }
}

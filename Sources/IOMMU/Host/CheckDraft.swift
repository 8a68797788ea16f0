/// A check in the making: it reads, and keeps what it read as evidence.
struct CheckDraft {
  private let id: Preflight.ID
  private let kernel: any Kernel
  private var evidence: [Preflight.Evidence] = []
  private var outcome = (
    verdict: Preflight.Verdict.unknown, meaning: "", remedy: String?.none, culprit: String?.none
  )

  init(_ id: Preflight.ID, _ kernel: any Kernel) { (self.id, self.kernel) = (id, kernel) }

  /// What came of reading.
  enum Seen: Equatable {
    case value(String)
    case absent
    case unreadable

    var value: String? { if case .value(let value) = self { value } else { nil } }
  }

  var check: Preflight.Check {
    Preflight.Check(
      id: id, verdict: outcome.verdict, evidence: evidence, meaning: outcome.meaning, remedy: outcome.remedy,
      culprit: outcome.culprit)
  }

  mutating func conclude(
    _ verdict: Preflight.Verdict, _ meaning: String, remedy: String? = nil, culprit: String? = nil
  ) {
    outcome = (verdict, meaning, remedy, culprit)
  }

  mutating func note(_ path: String, _ value: String) {
    let line = value.split(separator: "\n", omittingEmptySubsequences: false).first ?? ""
    let text = line.count > 200 ? "\(line.prefix(200))…" : String(line)
    evidence.append(.init(path: path, value: text))
  }

  private mutating func failed(_ path: String, _ error: Errno) -> Seen {
    if error == .noEntry || error == .notDirectory {
      note(path, "not there")
      return .absent
    }
    note(path, "unreadable: \(error)")
    return .unreadable
  }

  /// A file's text. `showing` picks what becomes evidence of it; nil shows its first line.
  mutating func text(_ path: String, showing: ((String) -> String)? = nil) -> Seen {
    do {
      let bytes = try kernel.readFile(path)
      guard bytes.count <= FileReader.byteLimit, let text = Field.text(Field.trimmed(bytes[...])) else {
        note(path, "unreadable: no text")
        return .unreadable
      }
      note(path, showing?(text) ?? text)
      return .value(text)
    } catch { return failed(path, error) }
  }

  /// The last component of a link's target.
  mutating func link(_ path: String) -> Seen {
    do {
      guard let name = Field.lastComponent(try kernel.readLink(path)) else {
        note(path, "unreadable: no name")
        return .unreadable
      }
      note(path, name)
      return .value(name)
    } catch { return failed(path, error) }
  }

  /// The names in a directory; the evidence is their number and the first of them.
  mutating func names(_ path: String, leavingOut isNone: (String) -> Bool = { _ in false }) -> [String]? {
    do {
      let names = try kernel.listDirectory(path).filter { !isNone($0) }
      let shown = names.prefix(6).joined(separator: " ") + (names.count > 6 ? " … (\(names.count))" : "")
      note(path, names.isEmpty ? "empty" : shown)
      return names
    } catch { return failed(path, error) == .absent ? [] : nil }
  }

  /// Whether something is there; nil when that cannot be told.
  mutating func exists(_ path: String) -> Bool? {
    do {
      _ = try kernel.status(path)
      note(path, "there")
      return true
    } catch { return failed(path, error) == .absent ? false : nil }
  }
}

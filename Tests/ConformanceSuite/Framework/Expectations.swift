package import IOMMU

/// Something that must hold does not.
package struct Failure: Error, CustomStringConvertible {
  package let description: String
  package init(_ description: String) { self.description = description }
}

/// Throws ``Failure`` unless the condition holds.
package func expect(_ condition: Bool, _ text: @autoclosure () -> String) throws {
  if !condition { throw Failure(text()) }
}

/// Throws ``Failure`` unless both are equal.
package func expectEqual<Value: Equatable>(
  _ found: Value, _ wanted: Value, _ what: @autoclosure () -> String
) throws {
  if found != wanted { throw Failure("\(what()): \(found), wanted \(wanted)") }
}

/// A call of the kernel that must fail with one of these errors.
package func expectErrno<Result>(
  _ wanted: Errno..., what: String, _ body: () throws(Errno) -> Result
) throws {
  do throws(Errno) {
    _ = try body()
  } catch {
    if wanted.contains(error) { return }
    throw Failure("\(what): \(error.name), wanted \(wanted.map(\.name).joined(separator: " or "))")
  }
  throw Failure("\(what): went well, wanted \(wanted.map(\.name).joined(separator: " or "))")
}

/// A call of the library that must fail with one of these codes; returns the error.
@discardableResult
package func expectCode(
  _ wanted: DMAError.Code..., what: String, _ body: () throws(DMAError) -> Void
) throws -> DMAError {
  do throws(DMAError) {
    try body()
  } catch {
    if wanted.contains(error.code) { return error }
    throw Failure("\(what): \(error), wanted \(wanted.map(\.name).joined(separator: " or "))")
  }
  throw Failure("\(what): went well, wanted \(wanted.map(\.name).joined(separator: " or "))")
}

/// An error's text must have all of these parts.
package func expectText(_ error: DMAError, has parts: String...) throws {
  let text = error.description
  for part in parts where !text.contains(part) {
    throw Failure("The error does not say '\(part)': \(text)")
  }
}

extension UInt64 {
  /// As addresses are written.
  var hexadecimal: String { "0x" + String(self, radix: 16) }
}

public import IOMMU

/// Why the controller did not do what it was asked.
public enum NVMeError: Error, Sendable, CustomStringConvertible {
  /// The library or the kernel refused.
  case dma(DMAError)
  /// The controller did not get ready, or not rest, in time.
  case notReady(status: UInt32)
  /// A command was not completed in time.
  case timedOut(opcode: UInt8)
  /// A command was completed with an error: status code type (0 generic, 2 media) and status code.
  case status(opcode: UInt8, type: UInt8, code: UInt8)
  /// What was asked for cannot be said in one command.
  case invalidTransfer(String)
  /// The controller lacks what this driver needs.
  case unsupported(String)

  /// One sentence.
  public var description: String {
    switch self {
    case .dma(let error): "\(error)"
    case .notReady(let status): "The controller is not ready, CSTS 0x\(String(status, radix: 16))"
    case .timedOut(let opcode): "Command 0x\(String(opcode, radix: 16)) was not completed in time"
    case .status(let opcode, let type, let code):
      "Command 0x\(String(opcode, radix: 16)) failed: status type \(type), code 0x\(String(code, radix: 16))"
    case .invalidTransfer(let text), .unsupported(let text): text
    }
  }
}

/// Runs library calls and gives their errors this driver's type.
func library<Result: ~Copyable>(
  _ body: () throws(DMAError) -> Result
) throws(NVMeError) -> Result {
  do throws(DMAError) { return try body() } catch { throw .dma(error) }
}

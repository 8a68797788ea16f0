import AddressSpaceModels
import Glibc

// What libFuzzer calls, whose `main` this program has: FUZZ_TARGET in the environment names one of the targets.

/// A target: what must hold for any bytes. It ends the program where it does not.
private enum Target: String, CaseIterable {
  /// A trace of the store, or of the allocator of addresses, beside its model.
  case store
  /// The parser of trace files: what was read can be written, and is the same when it is read again.
  case trace
  /// Records of an event queue, as iommufd gives them.
  case events
  /// Lines of the kernel's log.
  case log
  /// What `IOMMU_GET_HW_INFO` answers.
  case hardware
  /// Words of page tables, handed to the reader that checks what was written.
  case tables

  func run(_ bytes: [UInt8]) {
    switch self {
    case .store:
      do { if let failure = try ModelRun.bytes(bytes) { fatalError(failure) } } catch { fatalError("\(error)") }
    case .trace:
      guard let trace = try? TraceText.parse(bytes) else { return }
      let text = TraceText.text(of: trace)
      guard let again = try? TraceText.parse(text), again == trace else {
        fatalError(String(decoding: text, as: UTF8.self))
      }
    case .events: FaultBytes.events(bytes)
    case .log: FaultBytes.log(bytes)
    case .hardware: HardwareBytes.run(bytes)
    case .tables: TableWords(bytes).run()
    }
  }
}

private let target = unsafe getenv("FUZZ_TARGET").flatMap { unsafe Target(rawValue: String(cString: $0)) }

/// What libFuzzer calls with each input.
@_cdecl("LLVMFuzzerTestOneInput")
public func test(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
  guard let target else {
    print("FUZZ_TARGET is one of: \(Target.allCases.map(\.rawValue).joined(separator: ", "))")
    exit(2)
  }
  target.run(unsafe [UInt8](UnsafeBufferPointer(start: bytes, count: count)))
  return 0
}

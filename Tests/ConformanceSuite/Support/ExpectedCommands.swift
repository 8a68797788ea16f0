import IOMMUSimulation

/// The commands that an SMMUv3 is to execute in a phase of ``Suite/counts``, by opcode, and no others.
///
/// The configuration commands of the kernel, each with a sync of its own, are no part of it: how many there are where devices are
/// attached is the kernel's business.
struct ExpectedCommands {
  /// What the process sends, with the sync that the kernel adds to it.
  var process: [SMMUOpcode: Int] = [:]
  /// What the kernel sends by itself.
  var kernel: [SMMUOpcode: Int] = [:]
  /// Pages of 4 KiB that the process's commands by address name.
  var pages = 0

  /// Words such as `process:TLBI_NH_VA=1`, for hardware-test to compare with QEMU's trace.
  var text: String {
    let sent = [("process", process), ("kernel", kernel)].flatMap { sender, commands in
      commands.sorted { $0.key.rawValue < $1.key.rawValue }.map { "\(sender):\($0.key.name)=\($0.value)" }
    }
    return (sent + ["pages=\(pages)"]).joined(separator: " ")
  }

  /// Throws unless these are what a simulated SMMUv3 has counted in between.
  func expect(from before: SMMUCounters, to now: SMMUCounters) throws {
    for opcode in SMMUOpcode.allCases where !opcode.isConfigurationInvalidation {
      let sent = now.process[opcode] - before.process[opcode]
      try expectEqual(sent, process[opcode] ?? 0, "\(opcode.name) of the process")
      var added = now.kernel[opcode] - before.kernel[opcode]
      if opcode == .sync {
        added -= now.kernel.configurationInvalidations - before.kernel.configurationInvalidations
      }
      try expectEqual(added, kernel[opcode] ?? 0, "\(opcode.name) of the kernel")
    }
    try expectEqual(
      Int(now.invalidatedBytes - before.invalidatedBytes), pages * 4096, "bytes that the process's commands name")
  }
}

extension SMMUOpcode {
  /// As the specification and QEMU's trace have it, without what all of them begin with.
  fileprivate var name: String {
    switch self {
    case .invalidateSTE: "CFGI_STE"
    case .invalidateAllConfiguration: "CFGI_ALL"
    case .invalidateCD: "CFGI_CD"
    case .invalidateAllCDs: "CFGI_CD_ALL"
    case .invalidateAll: "TLBI_NH_ALL"
    case .invalidateASID: "TLBI_NH_ASID"
    case .invalidateAddress: "TLBI_NH_VA"
    case .invalidateAddressInAllASIDs: "TLBI_NH_VAA"
    case .invalidateVMID: "TLBI_S12_VMALL"
    case .invalidateStage2: "TLBI_S2_IPA"
    case .invalidateEverything: "TLBI_NSNH_ALL"
    case .invalidateATC: "ATC_INV"
    case .sync: "SYNC"
    }
  }
}

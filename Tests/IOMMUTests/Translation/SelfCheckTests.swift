import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The check in place, of tables of the process that are set up, where it fails.
@Suite struct SelfCheckTests {
  private static let address = "0000:00:02.0"

  /// What goes wrong on an SMMUv3, and what is said of it.
  enum Failure: CaseIterable {
    /// The tables are not what was written.
    case tables
    /// The SMMU complains of them.
    case event
    /// The kernel does not take the command for context descriptors, or those for ranges, which come after it.
    case contextCommand, rangeCommand

    func arm(_ kernel: FaultingKernel) {
      switch self {
      case .tables:
        // The entries of doorbells lead elsewhere.
        kernel.interject(before: "vfioAttach") {
          kernel.changeLastMapped { word in
            (0x800_0000..<0x810_0000).contains(word & 0xffff_ffff_f000) ? word ^ 1 << 30 : word
          }
        }
      case .event: kernel.reportEvent([0x0a | 1 << 32, 0, 0, 0])
      case .contextCommand: kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
      // What fails goes again as one command for everything, which fails then too.
      case .rangeCommand: kernel.failFrom(2, of: "hwptInvalidate", with: .inputOutput)
      }
    }

    var reason: String {
      switch self {
      case .tables: "The self-check failed: the doorbells are not in stage 1"
      case .event: "The self-check failed: the SMMU reports C_BAD_CD"
      case .contextCommand, .rangeCommand: "IOMMU_HWPT_INVALIDATE answers EIO"
      }
    }
  }

  /// Left to itself the library takes the kernel's tables, over the same address space, and says why.
  @Test(arguments: Failure.allCases)
  func theKernelsTablesInstead(_ failure: Failure) throws {
    let machine = Self.machine(.smmuv3Nested), kernel = FaultingKernel(machine.kernel)
    do {
      failure.arm(kernel)
      let device = try Device(Self.address, on: Host(kernel: kernel))
      kernel.passAll()
      #expect(device.translation == TranslationInUse(.kernel, failure.reason) && device.interface == .iommufd)
      #expect(machine.kernel.census.nestingObjects == 0 && machine.kernel.census.pageTables == 1)
      #expect(machine.kernel.census.pinnedBytes == 0, "no table of the process is left")
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional),
        address = mapping.address
      #expect(try ProcessOwnedVTdTests.reaches(device, address, machine))
      _ = try mapping.unmap()
      #expect(try !ProcessOwnedVTdTests.reaches(device, address, machine))
      device.close()
    }
    #expect(machine.isClean)
  }

  /// Whoever insists on tables of the process gets an error, and nothing is left open.
  @Test(arguments: Failure.allCases)
  func anErrorWhereAskedFor(_ failure: Failure) throws {
    let machine = Self.machine(.smmuv3Nested), kernel = FaultingKernel(machine.kernel)
    failure.arm(kernel)
    try refused(kernel, failure.reason)
    #expect(machine.isClean)
  }

  /// On a VT-d, which is never chosen without being asked for, and has neither doorbells nor events: the kernel has to take the
  /// commands.
  @Test(arguments: [1, 2, 9]) func onAVTd(_ n: Int) throws {
    let machine = Self.machine(.vtdNested), kernel = FaultingKernel(machine.kernel)
    kernel.failFrom(n, of: "hwptInvalidate", with: .inputOutput)
    try refused(kernel, "IOMMU_HWPT_INVALIDATE answers EIO")
    #expect(machine.isClean)
  }

  private func refused(_ kernel: FaultingKernel, _ reason: String) throws {
    do throws(DMAError) {
      _ = try Device(Self.address, on: Host(kernel: kernel), translation: .process)
      Issue.record("opened")
    } catch {
      #expect(error.code == .notSupported && error.device == Self.address && error.remedy != nil)
      #expect(error.detail == "The page tables cannot be the process's. \(reason)")
    }
    #expect(kernel.count(of: "vfioAttach") == kernel.count(of: "vfioDetach") && kernel.count(of: "vfioAttach") == 1)
  }

  private static func machine(_ machine: SimulatedMachine) -> SimulatedHost {
    SimulatedHost(machine, devices: [address: EduModel(addressBits: 64)])
  }
}

import CIOMMU
public import IOMMU

/// A simulated machine that runs: the ``host`` to drive devices with, and a window into what happens behind it.
///
/// ```swift
/// let machine = SimulatedHost(devices: ["0000:03:00.0": EduModel()])
/// let device = try Device("0000:03:00.0", on: machine.host)
/// // … let the driver work …
/// #expect(machine.faults.isEmpty)
/// #expect(machine.counters.processInvalidations == 1)
/// ```
public final class SimulatedHost: Sendable {
  /// What a `Device` is opened on.
  public let host: Host

  /// The kernel behind the host.
  package let kernel: SimulatedKernel

  /// Boots a machine with its own devices and those given by address, each bound to vfio-pci in a group of its own.
  /// Traps when an address is no PCI address or is taken twice.
  public init(_ machine: SimulatedMachine = .vtd, devices: [String: any DeviceModel] = [:]) {
    var machine = machine
    machine.devices += devices.sorted { $0.key < $1.key }.map { SimulatedDevice($0.key, $0.value) }
    kernel = SimulatedKernel(machine)
    host = Host(kernel: kernel)
  }

  /// The requests that the IOMMU refused, oldest first; at most 4096 are kept.
  public var faults: [SimulatedFault] { kernel.locked { $0.faults } }

  /// What the IOMMU did since the machine began.
  public var counters: SimulatedCounters {
    kernel.locked { state in
      var counters = state.iommu?.counters ?? SimulatedCounters()
      counters.systemCalls = state.systemCalls
      return counters
    }
  }

  /// What an SMMUv3 did since the machine began, by the number of the unit; nothing on a machine without it.
  public func smmuCounters(unit: Int = 0) -> SMMUCounters {
    kernel.locked { state in
      guard let smmus = state.iommu?.smmus, smmus.indices.contains(unit) else { return SMMUCounters() }
      return smmus[unit].counters
    }
  }

  /// What a VT-d did since the machine began, by the number of the unit; nothing on a machine without one as hardware
  /// (``SimulatedMachine/vtdRegisters``).
  public func vtdCounters(unit: Int = 0) -> VTdCounters {
    kernel.locked { state in
      guard let vtds = state.iommu?.vtds, vtds.indices.contains(unit) else { return VTdCounters() }
      return vtds[unit].counters
    }
  }

  /// What the machine's clock was charged since it began, by its ``CostTable``: the same however fast the real machine is.
  public var chargedTime: Duration { kernel.locked { .nanoseconds(Int64($0.clock.charged)) } }

  /// Whether nothing is left of what drivers opened, mapped and pinned.
  ///
  /// The thread that watches for device events ends a moment after the last device was closed, and the thread that flushes may
  /// hold the last reference to a domain for as long: they are given a second.
  public var isClean: Bool {
    let deadline = ContinuousClock.now + .seconds(1)
    while !kernel.census.isEmpty {
      guard ContinuousClock.now < deadline else { return false }
      _ = ci_sleep_ns(1_000_000)
    }
    return true
  }

  /// The model of a device as it is now: a copy of a structure, the object itself of a class. Nil when there is no such
  /// device or its model is of another type.
  public func model<Model: DeviceModel>(at address: String, as type: Model.Type = Model.self) -> Model? {
    let slot = kernel.locked { state in PCIAddress(address).flatMap { state.devices[$0]?.slot } }
    return slot?.snapshot(as: type)
  }

  /// Takes a device out of the machine, as a hot unplug does: its user is asked to let go, ioctls fail with ENODEV,
  /// registers read as all ones, and it does no more DMA.
  public func unplug(_ address: String) {
    guard let address = PCIAddress(address) else { return }
    kernel.locked { $0.unplug(address) }
  }
}

extension Host {
  /// A machine that exists only in this process, with an ``EduModel`` that drives 64 address bits at `0000:00:02.0`
  /// unless devices are given.
  ///
  /// - Parameters:
  ///   - machine: The IOMMU, the kernel and the process's rights.
  ///   - devices: Models by PCI address.
  ///   - interfaces: What the kernel offers; nil leaves the machine's own choice.
  public static func simulated(
    _ machine: SimulatedMachine = .vtd, devices: [String: any DeviceModel] = [:],
    interfaces: Set<Interface>? = nil
  ) -> Host {
    var machine = machine
    if let interfaces { machine.interfaces = interfaces }
    let isEmpty = machine.devices.isEmpty && devices.isEmpty
    let devices = isEmpty ? ["0000:00:02.0": EduModel(addressBits: 64)] : devices
    return SimulatedHost(machine, devices: devices).host
  }
}

/// Who is to write the page tables that translate for a device.
///
/// It decides what a map and an unmap cost: system calls where the ``kernel`` writes them; where this process does, stores into
/// memory, and one invalidation an unmap.
public enum TranslationChoice: String, Hashable, Sendable, CaseIterable {
  /// This process where kernel and hardware allow it, but for VT-d, else the kernel; ``Device/translation`` tells which, and why.
  case automatic
  /// The kernel: an iommufd address space, or a type1 container. Works behind every IOMMU.
  case kernel
  /// This process, by nested translation: its own tables (stage 1) over a kernel's (stage 2), which holds pinned memory. On
  /// Intel VT-d that was not yet run on hardware, and is never chosen without being asked for.
  case process
}

/// Who writes the page tables that translate for an open device, and why.
public struct TranslationInUse: Hashable, Sendable, CustomStringConvertible {
  /// An owner of page tables.
  public enum Owner: String, Hashable, Sendable, CaseIterable {
    /// The kernel writes them, by a system call each time.
    case kernel
    /// This process writes its stage 1.
    case process
  }
  /// Whose they are.
  public let owner: Owner
  /// Why, in one sentence.
  public let reason: String
  /// Both, as in `process: Asked for`.
  public var description: String { "\(owner.rawValue): \(reason)" }

  package init(_ owner: Owner, _ reason: String) { (self.owner, self.reason) = (owner, reason) }
}

extension TranslationInUse {
  /// Why the page tables of a device on this kernel cannot be the process's, as far as is known before it is opened; nil when
  /// they can, or where the hardware is asked once the device is bound.
  ///
  /// - Parameter unit: The name of the IOMMU unit that translates for the device.
  package static func processRefusal(on kernel: any Kernel, _ interface: Interface?, unit: String?) -> String? {
    if interface == .type1 { return "A type1 container has no nested translation" }
    if kernel.isSimulated, !kernel.nests { return "The simulated machine has no nested translation" }
    if kernel.hasFlatFormat { return nil }
    switch unit.map(IOMMUUnit.kind(of:)) {
    case .smmuv3, nil: return nil
    case .vtd: return vtdRefusal(on: kernel, unit!)
    case .amd, .smmuv2, .virtio, .other: return "The kernel has no nested translation for this IOMMU"
    }
  }

  /// What the registers in sysfs say against it; nil where they say nothing, as the kernel is asked again then.
  private static func vtdRefusal(on kernel: any Kernel, _ name: String) -> String? {
    vtdIdentity(on: kernel, name)?.refusal
  }

  /// The registers of a VT-d by its name; nil where sysfs does not show them.
  package static func vtdIdentity(on kernel: any Kernel, _ name: String) -> VTdIdentity? {
    let unit = (try? Host(kernel: kernel).units())?.first { $0.name == name }
    guard let capability = unit?.capabilities, let extended = unit?.extendedCapabilities else { return nil }
    return VTdIdentity(capability: capability, extendedCapability: extended)
  }

  /// Why the page tables are not the process's unless it asks for that, where they could be; nil where they are.
  ///
  /// - Parameter unit: The name of the IOMMU unit that translates for the device.
  package static func reasonToAsk(on kernel: any Kernel, unit: String?) -> String? {
    guard !kernel.hasFlatFormat, unit.map(IOMMUUnit.kind(of:)) == .vtd else { return nil }
    return "The page tables could be the process's, which on VT-d was not yet run on hardware: only when asked for"
  }

  /// Whether only opening a device tells if its page tables can be the process's.
  package static func isDecidedByOpening(on kernel: any Kernel) -> Bool { !kernel.hasFlatFormat }

  /// Whether a device may translate by itself (Address Translation Services) where the page tables are the process's, and why. No
  /// answer where the IOMMU is not known; neither yes nor no where it is the kernel's to decide.
  ///
  /// - Parameter unit: The name of the IOMMU unit that translates for the device.
  package static func deviceTranslation(on kernel: any Kernel, unit: String?) -> (isAllowed: Bool?, reason: String)? {
    if kernel.hasFlatFormat { return (false, "The simulated machine has no translation by devices") }
    switch unit.map(IOMMUUnit.kind(of:)) {
    case .smmuv3: return (false, "EATS is 0 in the stream table entry: translation requests of the device are refused")
    case .vtd:
      return (nil, "The kernel switches it on where the device has it, and invalidates what the device caches")
    default: return nil
    }
  }

  static let asked = "Asked for"
  package static let nests = "Nested translation is possible here"
}

/// What a device is opened over.
struct ChosenTranslation {
  let translation: any Translation
  let use: TranslationInUse

  /// Page tables by iommufd, over an open descriptor or one of its own. If this throws, `descriptor` is closed.
  ///
  /// - Parameter target: The device, which may be bound on return; what it had open is closed when this throws.
  static func iommufd(
    _ choice: TranslationChoice, _ kernel: any Kernel, descriptor: Int32? = nil, _ target: inout AttachTarget
  ) throws(DMAError) -> ChosenTranslation {
    let refusal = TranslationInUse.processRefusal(on: kernel, .iommufd, unit: target.unit)
    do throws(DMAError) {
      let against = choice == .kernel ? TranslationInUse.asked : refusal
      let hesitation = choice == .automatic ? TranslationInUse.reasonToAsk(on: kernel, unit: target.unit) : nil
      if choice != .process, let reason = against ?? hesitation {
        return ChosenTranslation(
          translation: try KernelOwnedIOAS(kernel: kernel, descriptor: descriptor),
          use: TranslationInUse(.kernel, reason))
      }
      if let refusal {
        if let descriptor { kernel.close(descriptor) }
        throw refused(refusal, target.address.description)
      }
      guard kernel.hasFlatFormat else { return try nested(choice, kernel, descriptor, &target) }
      return ChosenTranslation(
        translation: try ProcessOwnedFlat(kernel: kernel, descriptor: descriptor),
        use: TranslationInUse(.process, choice == .process ? TranslationInUse.asked : TranslationInUse.nests))
    } catch {
      if let descriptor = target.descriptor { kernel.close(descriptor) }
      throw error
    }
  }

  /// Binds the device and asks the hardware; the kernel's tables, over the same address space, where they cannot be ours.
  private static func nested(
    _ choice: TranslationChoice, _ kernel: any Kernel, _ descriptor: Int32?, _ target: inout AttachTarget
  ) throws(DMAError) -> ChosenTranslation {
    let opened = try IOMMUFDDescriptor(kernel: kernel, descriptor: descriptor), name = target.address.description
    do throws(DMAError) {
      let device = try opened.open(target)
      do throws(DMAError) {
        target.bound = BoundDevice(descriptor: device, id: try opened.bind(device, target))
      } catch {
        if target.descriptor == nil { kernel.close(device) }
        throw error.on(name)
      }
      do throws(NestingRefusal) {
        return ChosenTranslation(
          translation: try processOwned(opened, target, mayBeVTd: choice == .process),
          use: TranslationInUse(.process, choice == .process ? TranslationInUse.asked : TranslationInUse.nests))
      } catch {
        if choice == .automatic, !error.isFinal {
          return ChosenTranslation(
            translation: KernelOwnedIOAS(opened), use: TranslationInUse(.kernel, error.reason))
        }
        if target.descriptor == nil { kernel.close(device) }
        target.bound = nil
        throw error.error(name)
      }
    } catch {
      try? kernel.iommufdDestroy(opened.iommufd, id: opened.ioas)
      kernel.close(opened.iommufd)
      throw error
    }
  }

  /// By the IOMMU's name, and where that is not known by what the kernel says of it.
  private static func processOwned(
    _ opened: IOMMUFDDescriptor, _ target: AttachTarget, mayBeVTd: Bool
  ) throws(NestingRefusal) -> any Translation {
    let isVTd: Bool
    if let unit = target.unit {
      isVTd = IOMMUUnit.kind(of: unit) == .vtd
    } else {
      let info = try? opened.kernel.hardwareInfo(opened.iommufd, device: target.bound!.id)
      isVTd = info?.type == VTdIdentity.hardwareType
    }
    if isVTd, mayBeVTd { return try ProcessOwnedVTd.make(opened, target) }
    return try ProcessOwnedSMMU.make(opened, target)
  }

  /// A type1 container. If this throws, `descriptor` is closed.
  static func type1(
    _ choice: TranslationChoice, _ kernel: any Kernel, descriptor: Int32? = nil, device: String
  ) throws(DMAError) -> ChosenTranslation {
    let refusal = TranslationInUse.processRefusal(on: kernel, .type1, unit: nil)!
    if choice == .process {
      if let descriptor { kernel.close(descriptor) }
      throw refused(refusal, device)
    }
    return ChosenTranslation(
      translation: try KernelOwnedContainer(kernel: kernel, descriptor: descriptor),
      use: TranslationInUse(.kernel, choice == .kernel ? TranslationInUse.asked : refusal))
  }

  private static func refused(_ reason: String, _ device: String) -> DMAError {
    DMAError(
      .notSupported, "open", device: device, detail: "The page tables cannot be the process's. \(reason)",
      remedy: "Leave the translation to the library, or ask for the kernel's")
  }
}

/// Who is to write the page tables that translate for a device.
///
/// It decides what a map and an unmap cost: system calls where the ``kernel`` writes them; where this process does, stores into
/// memory, and one invalidation an unmap.
public enum TranslationChoice: String, Hashable, Sendable, CaseIterable {
  /// This process where kernel and hardware allow it, else the kernel; ``Device/translation`` tells which, and why.
  case automatic
  /// The kernel: an iommufd address space, or a type1 container. Works behind every IOMMU.
  case kernel
  /// This process, by nested translation: its own tables (stage 1) over a kernel's (stage 2), which holds pinned memory.
  case process
}

/// Who writes the page tables that translate for an open device, and why.
public struct TranslationInUse: Hashable, Sendable {
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

  package init(_ owner: Owner, _ reason: String) { (self.owner, self.reason) = (owner, reason) }
}

extension TranslationInUse {
  /// Why the page tables of a device on this kernel cannot be the process's; nil when they can.
  package static func processRefusal(on kernel: any Kernel, _ interface: Interface?) -> String? {
    guard kernel.hasFlatFormat else {
      return kernel.isSimulated
        ? "The simulated machine has no nested translation"
        : "This version of the library has no nested translation"
    }
    return interface == .type1 ? "A type1 container has no nested translation" : nil
  }

  static let asked = "Asked for"
  package static let nests = "Nested translation is possible here"
}

/// What a device is opened over.
struct ChosenTranslation {
  let translation: any Translation
  let use: TranslationInUse

  /// Page tables by iommufd, over an open descriptor or one of its own. If this throws, `descriptor` is closed.
  static func iommufd(
    _ choice: TranslationChoice, _ kernel: any Kernel, descriptor: Int32? = nil, device: String
  ) throws(DMAError) -> ChosenTranslation {
    let refusal = TranslationInUse.processRefusal(on: kernel, .iommufd)
    if choice == .kernel || (choice == .automatic && refusal != nil) {
      return ChosenTranslation(
        translation: try KernelOwnedIOAS(kernel: kernel, descriptor: descriptor),
        use: TranslationInUse(.kernel, choice == .kernel ? TranslationInUse.asked : refusal!))
    }
    if let refusal {
      if let descriptor { kernel.close(descriptor) }
      throw refused(refusal, device)
    }
    return ChosenTranslation(
      translation: try ProcessOwnedFlat(kernel: kernel, descriptor: descriptor),
      use: TranslationInUse(.process, choice == .process ? TranslationInUse.asked : TranslationInUse.nests))
  }

  /// A type1 container. If this throws, `descriptor` is closed.
  static func type1(
    _ choice: TranslationChoice, _ kernel: any Kernel, descriptor: Int32? = nil, device: String
  ) throws(DMAError) -> ChosenTranslation {
    let refusal = TranslationInUse.processRefusal(on: kernel, .type1)!
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

import AddressSpace
import Synchronization

/// A device that is attached, with everything that a ``Device`` is made of. If a step fails, those before it are undone.
struct OpenedDevice {
  var kernel: any Kernel
  var core: DomainCore
  var attachment: Attachment
  var handle: DeviceHandle
  var info: VFIODeviceInfo
  var config: ConfigSpace
  var reason: String
  var translation: TranslationInUse

  /// Chooses the interface, attaches, and makes or joins the address space.
  static func open(
    _ opening: (target: AttachTarget, host: Host), interface: Interface?, translation: TranslationChoice,
    sharing domain: (core: DomainCore, translation: TranslationInUse)?, debug: DebugOptions?
  ) throws(DMAError) -> OpenedDevice {
    if let (core, shared) = domain {
      guard debug == nil else {
        throw DMAError(
          .invalidArgument, "open", device: opening.target.address.description,
          detail: "Debug mode is a domain's, and the domain to share is there already",
          remedy: "Ask for it with the domain's first device")
      }
      guard core.kernel === opening.host.kernel else {
        throw DMAError(
          .invalidArgument, "open", device: opening.target.address.description,
          detail: "The domain to share is another machine's", remedy: "Open both devices on one host")
      }
      if let interface, interface != core.translation.interface {
        throw DMAError(
          .invalidArgument, "open", device: opening.target.address.description,
          detail: "The domain to share is on \(core.translation.interface.rawValue)")
      }
      if translation != .automatic, translation.rawValue != shared.owner.rawValue {
        throw DMAError(
          .invalidArgument, "open", device: opening.target.address.description,
          detail: "The page tables of the domain to share are the \(shared.owner.rawValue)'s")
      }
      let chosen = ChosenTranslation(
        translation: core.translation, use: TranslationInUse(shared.owner, "The shared domain's"))
      return try open(opening, over: chosen, joining: core, reason: "The shared domain's")
    }
    switch interface {
    case .iommufd: return try openIOMMUFD(opening, translation, "Asked for", debug)
    case .type1: return try openType1(opening, translation, "Asked for", debug)
    case nil: return try openBest(opening, translation, debug)
    }
  }

  /// iommufd first; type1 where the kernel lacks iommufd, or the process may not use it.
  private static func openBest(
    _ opening: (target: AttachTarget, host: Host), _ translation: TranslationChoice, _ debug: DebugOptions?
  ) throws(DMAError) -> OpenedDevice {
    let refused: DMAError
    do throws(DMAError) {
      return try openIOMMUFD(opening, translation, "The kernel has iommufd and a node for the device", debug)
    } catch {
      // Tables of the process come with iommufd alone.
      guard translation != .process, error.code == .notSupported || error.code == .permission else { throw error }
      refused = error
    }
    do throws(DMAError) {
      return try openType1(opening, translation, "iommufd cannot be used: \(refused)", debug)
    } catch {
      // The group cannot be opened either: the first reason is the one to mend, unless there is no iommufd at all.
      guard error.code == .permission || error.code == .notSupported || error.code == .noSuchDevice else { throw error }
      var first = refused.code == .notSupported ? error : refused
      let other = refused.code == .notSupported ? refused : error
      first.detail = [first.detail, "The other interface: \(other)"].compactMap(\.self).joined(separator: ". ")
      throw first
    }
  }

  private static func openIOMMUFD(
    _ opening: (target: AttachTarget, host: Host), _ translation: TranslationChoice, _ reason: String,
    _ debug: DebugOptions?
  ) throws(DMAError) -> OpenedDevice {
    guard opening.target.node != nil else {
      throw DMAError(
        .notSupported, "open", device: opening.target.address.description,
        detail: "The kernel gives the device no node below /dev/vfio/devices",
        remedy: "Use a kernel with CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD, or the type1 interface")
    }
    var opening = opening
    let chosen = try ChosenTranslation.iommufd(translation, opening.host.kernel, &opening.target)
    return try open(opening, over: chosen, reason: reason, debug: debug)
  }

  private static func openType1(
    _ opening: (target: AttachTarget, host: Host), _ translation: TranslationChoice, _ reason: String,
    _ debug: DebugOptions?
  ) throws(DMAError) -> OpenedDevice {
    let name = opening.target.address.description
    return try open(
      opening, over: try ChosenTranslation.type1(translation, opening.host.kernel, device: name), reason: reason,
      debug: debug)
  }

  /// Attaches to a translation, which is closed again on failure unless it belongs to `core`.
  static func open(
    _ opening: (target: AttachTarget, host: Host), over chosen: ChosenTranslation, joining core: DomainCore? = nil,
    reason: String, debug: DebugOptions? = nil
  ) throws(DMAError) -> OpenedDevice {
    let kernel = opening.host.kernel, translation = chosen.translation
    let attachment: Attachment
    if let core, !core.join() { throw core.failed(.closed, "open").on(opening.target.address.description) }
    do throws(DMAError) {
      attachment = try translation.attach(opening.target)
    } catch {
      giveUp(nil, translation, core)
      throw error
    }
    do throws(DMAError) {
      let (handle, info, config) = try parts(attachment, kernel)
      let space = try AddressSpaceSetup.usable(attachment.target, translation, opening.host)
      let joined: DomainCore
      if let core {
        try core.narrow(to: space.usable, for: attachment.target.address.description)
        joined = core
      } else {
        joined = try AddressSpaceSetup.makeCore(
          kernel, translation, space, attachment.target, opening.host, debug: debug)
      }
      return OpenedDevice(
        kernel: kernel, core: joined, attachment: attachment, handle: handle, info: info, config: config,
        reason: reason, translation: chosen.use)
    } catch {
      giveUp(attachment, translation, core)
      throw error.on(attachment.target.address.description)
    }
  }

  /// A translation of the device's own is closed again, a shared one when its other devices have left meanwhile.
  private static func giveUp(_ attachment: Attachment?, _ translation: any Translation, _ core: DomainCore?) {
    if let core { return core.deviceLeaves(attachment) }
    if let attachment { translation.detach(attachment) }
    translation.close()
  }

  /// What the descriptor tells of the device.
  private static func parts(
    _ attachment: Attachment, _ kernel: any Kernel
  ) throws(DMAError) -> (DeviceHandle, VFIODeviceInfo, ConfigSpace) {
    let name = attachment.target.address.description
    let handle = try DeviceHandle(kernel: kernel, descriptor: attachment.descriptor, name: name)
    let info = try handle.use("VFIO_DEVICE_GET_INFO") { descriptor throws(Errno) in
      try kernel.vfioDeviceInfo(descriptor)
    }
    let region = try handle.use("VFIO_DEVICE_GET_REGION_INFO") { descriptor throws(Errno) in
      try kernel.vfioRegionInfo(descriptor, index: VFIOPCI.config)
    }
    return (handle, info, try ConfigSpace(handle, region: region))
  }
}

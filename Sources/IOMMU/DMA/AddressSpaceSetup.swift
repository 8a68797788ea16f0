import AddressSpace
import Synchronization

/// From what kernel and sysfs say to the addresses that mappings can get.
enum AddressSpaceSetup {
  /// The usable addresses for a device that is attached, and the granule.
  struct Space {
    var usable: IOVARanges
    var granule: PageSize
  }

  /// What the kernel offers, without the group's reserved regions, without addresses that a peer device would answer
  /// (BARs and bridge windows, where the group has several devices or ACS does not redirect), and without page 0, so
  /// that no valid address is zero.
  static func usable(
    _ target: AttachTarget, _ translation: any Translation, _ host: Host
  ) throws(DMAError) -> Space {
    let ranges: IOVARanges, sizes: PageSizes
    do throws(Errno) {
      ranges = try translation.usableRanges()
      sizes = try translation.pageSizes()
    } catch {
      let operation = translation.interface == .iommufd ? "IOMMU_IOAS_IOVA_RANGES" : "VFIO_IOMMU_GET_INFO"
      throw DMAError(.system, operation, errno: error)
    }
    let granule = sizes.smallest ?? .fourKiB
    var taken = [IOVARange(start: IOVA(0), byteCount: granule.byteCount)!]
    // What sysfs does not show is in the kernel's answer all the same, but for windows of peers.
    taken += (try? host.reservedRegions(ofGroup: target.group))?.regions.map(\.range) ?? []
    taken += (try? host.peerWindows(of: target.address))?.ranges.map(\.self) ?? []
    let usable = ranges.subtracting(IOVARanges(taken).widened(to: granule)).trimmed(to: granule)
    if usable.isEmpty {
      throw DMAError(.noSpace, "open", detail: "The IOMMU offers \(ranges), all of it reserved")
    }
    return Space(usable: usable, granule: granule)
  }

  static func makeCore(
    _ kernel: any Kernel, _ translation: any Translation, _ space: Space, _ target: AttachTarget, _ host: Host,
    debug: DebugOptions?
  ) throws(DMAError) -> DomainCore {
    let node = (try? host.device(target.address, named: false))?.numaNode
    do throws(RangeStoreFailure) {
      return try DomainCore(
        kernel: kernel, translation: translation, usable: space.usable, granule: space.granule, node: node,
        device: target.address.description, debug: DebugOptions.inForce(debug))
    } catch { throw DMAError(.outOfMemory, "open", detail: "\(error)") }
  }
}

extension DomainCore {
  /// Another device has joined, which may reach less: what it cannot is reserved, or the device is refused.
  ///
  /// It stays so when the device leaves: what remains is right for every device that is there, and a range that came back
  /// for a while would be in the way of the next such device.
  func narrow(to usable: IOVARanges, for device: String) throws(DMAError) {
    // What is kept without a mapping is in nobody's way, nor what waits for a flush. Where the kernel refuses, the answer is as
    // for a mapping.
    if enter() {
      _ = drain()
      leave()
    }
    holdReclaim()
    defer { resumeReclaim() }
    if let (range, reason) = reserveMakingRoom(usable) {
      throw DMAError(
        .reserved, "open", address: range.start.rawValue, byteCount: range.byteCount, device: device,
        detail: "The device cannot use \(range), and the domain has a mapping there (\(reason))",
        remedy: "Attach all devices of a domain before mapping")
    }
  }

  /// Cached addresses make room; in debug mode gaps do, one with each try.
  private func reserveMakingRoom(_ usable: IOVARanges) -> (IOVARange, RangeStoreFailure)? {
    var refused = reserveAll(but: usable)
    var tries = debug == nil ? 1 : Limits.debugGapsInTheWay
    while tries > 0, let reason = refused?.1, mayPass(reason), makeAddressRoom(reason) {
      refused = reserveAll(but: usable)
      tries -= 1
    }
    return refused
  }

  /// Reserves all but `usable`; nothing, and why, when that is not possible.
  private func reserveAll(but usable: IOVARanges) -> (IOVARange, RangeStoreFailure)? {
    while true {
      // Worked out, and forgotten, without the lock: it takes memory.
      let before = locked { $0.usable }
      let lost = Array(before.subtracting(usable))
      var after = before.intersection(usable)
      let outcome = unsafe lost.withUnsafeBufferPointer { lost in
        locked(insertions: lost.count) { state in unsafe state.narrow(from: before, to: &after, reserving: lost) }
      }
      switch outcome {
      case .done: return nil
      case .refused(let index, let reason): return (lost[index], reason)
      case .outdated: continue
      }
    }
  }
}

/// What came of taking ranges out of the usable ones.
private enum Narrowing {
  case done
  /// The range with this index is in use, and why; none was taken out.
  case refused(Int, RangeStoreFailure)
  /// Another device has taken others out meanwhile.
  case outdated
}

extension DomainState {
  /// Reserves ranges and has the usable ones be others, if they still are what they were; those come back in the place of the
  /// new ones, as their memory is not given back with the lock held.
  fileprivate mutating func narrow(
    from before: IOVARanges, to after: inout IOVARanges, reserving lost: UnsafeBufferPointer<IOVARange>
  ) -> Narrowing {
    guard usable == before else { return .outdated }
    for index in 0..<lost.count {
      do throws(RangeStoreFailure) { try unsafe store.reserve(lost[index]) } catch {
        for done in 0..<index { _ = unsafe store.unreserve(lost[done]) }
        return .refused(index, error)
      }
    }
    swap(&usable, &after)
    return .done
  }
}

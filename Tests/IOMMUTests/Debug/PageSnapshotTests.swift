import AddressSpace
import CIOMMU
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Memory that is given up while it is registered or mapped.
@Suite struct PageSnapshotTests {
  /// What a process does to its memory.
  enum Act: CaseIterable {
    case unmapped, moved, discarded, punched
    /// The same, and then it is touched anew: only the numbers of the frames tell.
    case mappedAnew, discardedAndTouched, punchedAndTouched

    static let seenByAll: [Act] = [.unmapped, .moved, .discarded, .punched]
    var isReplaced: Bool { !Self.seenByAll.contains(self) }
    var usesFile: Bool { self == .punched || self == .punchedAndTouched }
  }

  /// Pages of this process, private or of a file, that can be given up.
  @safe
  final class Memory {
    let base: UnsafeMutableRawPointer
    let byteCount = 4 * 4096
    let file: Int32
    private var fillers: [Int64] = []
    /// Whether another thread has the third page's address.
    private var isTaken = false

    init(ofFile: Bool) {
      file = ofFile ? unsafe ci_memfd_create("debug", 0) : -1
      if ofFile { _ = ci_ftruncate(file, UInt64(byteCount)) }
      unsafe base = UnsafeMutableRawPointer(bitPattern: Int(Self.map(4 * 4096, file)))!
      unsafe base.initializeMemory(as: UInt8.self, repeating: 1, count: byteCount)
    }

    deinit {
      _ = unsafe ci_munmap(base, isTaken ? 8192 : UInt64(byteCount))
      if isTaken { _ = unsafe ci_munmap(base + 12288, 4096) }
      for filler in fillers { _ = unsafe ci_munmap(UnsafeMutableRawPointer(bitPattern: Int(filler))!, 64 * 4096) }
      if file >= 0 { close(file) }
    }

    /// New memory, all of it there.
    private static func map(_ byteCount: Int, _ file: Int32, at place: UnsafeMutableRawPointer? = nil) -> Int64 {
      let kind = file >= 0 ? CI_MAP_SHARED : CI_MAP_PRIVATE | CI_MAP_ANONYMOUS
      let flags = unsafe kind | CI_MAP_POPULATE | (place == nil ? 0 : CI_MAP_FIXED)
      return unsafe ci_mmap(place, UInt64(byteCount), CI_PROT_READ | CI_PROT_WRITE, flags, file, 0)
    }

    var all: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: base, count: byteCount) }
    var address: UInt { unsafe UInt(bitPattern: base) }
    func page(_ index: Int) -> UnsafeRawBufferPointer {
      unsafe UnsafeRawBufferPointer(rebasing: all[index * 4096..<(index + 1) * 4096])
    }

    /// Unmaps a page and keeps its address: where other tests' threads got it, the end would unmap theirs.
    private static func vacate(_ page: UnsafeMutableRawPointer, _ fixed: Int32) -> Bool {
      unsafe ci_mmap(page, 4096, CI_PROT_NONE, CI_MAP_PRIVATE | CI_MAP_ANONYMOUS | fixed, -1, 0)
        == Int64(UInt(bitPattern: page))
    }

    /// Does it to the third page.
    func suffer(_ act: Act) {
      let page = unsafe base + 8192
      switch act {
      case .unmapped, .mappedAnew: _ = unsafe Self.vacate(page, CI_MAP_FIXED)
      case .moved:
        unsafe fillers.append(Self.map(64 * 4096, -1))
        _ = unsafe ci_mremap_fixed(page, 4096, UnsafeMutableRawPointer(bitPattern: Int(fillers[0]))!)
        isTaken = unsafe !Self.vacate(page, CI_MAP_FIXED_NOREPLACE)
      case .discarded, .discardedAndTouched: _ = unsafe ci_madvise(page, 4096, CI_MADV_DONTNEED)
      case .punched, .punchedAndTouched:
        _ = ci_fallocate(file, CI_FALLOC_FL_PUNCH_HOLE | CI_FALLOC_FL_KEEP_SIZE, 8192, 4096)
      }
      guard act.isReplaced else { return }
      // The frame that is free now goes to somebody else: the simulated kernel has not pinned it.
      unsafe fillers.append(Self.map(64 * 4096, -1))
      if act == .mappedAnew { _ = unsafe Self.map(4096, -1, at: page) }
      unsafe page.initializeMemory(as: UInt8.self, repeating: 3, count: 4096)
    }
  }

  /// Whether the numbers of frames are shown to this process.
  static let seesFrames: Bool = {
    let memory = Memory(ofFile: false)
    let words = try? LiveKernel.pageMap(UInt64(memory.address), pageCount: 1)
    return words?.first.map { $0 & ((1 << 55) - 1) != 0 } ?? false
  }()

  static let acts = seesFrames ? Act.allCases : Act.seenByAll

  /// A map of what is no more the registered memory is refused; other parts can be mapped. The end tells it again.
  @Test(arguments: acts) func underARegistration(_ act: Act) throws {
    let rig = try DebugRig(.process), dma = rig.dma, memory = Memory(ofFile: act.usesFile)
    let registration = try unsafe dma.register(unsafe: memory.all)
    try unsafe dma.map(unsafe: memory.all, .toDevice).unmap()
    #expect(rig.reports.isEmpty)
    memory.suffer(act)
    try unsafe dma.map(unsafe: memory.page(1), .toDevice).unmap()
    #expect(rig.reports.isEmpty)
    let kind = act.isReplaced ? DebugReport.Kind.memoryReplaced : .memoryGone
    func refused(_ body: () throws(DMAError) -> Void) {
      let count = rig.reports.count
      #expect(DebugRig.code(body) == .badMemory && rig.kinds.dropFirst(count) == [kind])
    }
    refused { () throws(DMAError) in _ = try unsafe dma.map(unsafe: memory.page(2), .toDevice) }
    refused { () throws(DMAError) in _ = try unsafe dma.mapBulk(unsafe: memory.all, .toDevice) }
    refused { () throws(DMAError) in
      var list = ScatterList()
      unsafe list.append(unsafe: memory.page(2))
      _ = try dma.map(list, .toDevice)
    }
    refused { () throws(DMAError) in
      var reservation = try dma.reserve(byteCount: 4096)
      try unsafe reservation.link(unsafe: memory.page(2), at: 0, .toDevice)
    }
    let page = String(memory.address + 8192, radix: 16)
    #expect(rig.reports.allSatisfy { $0.text.contains(page) && !$0.mappedAt.isEmpty })
    #expect(dma.examine().map(\.kind) == [kind])
    let count = rig.reports.count
    try registration.unregister()
    #expect(rig.kinds.dropFirst(count) == [kind])
    rig.device.close()
    #expect(rig.reports.count == count + 1 && dma.statistics.liveMappings == 0)
  }

  /// Memory of the caller's that is mapped by itself, when its mapping ends.
  @Test(arguments: acts) func underAMapping(_ act: Act) throws {
    let rig = try DebugRig(.ioas), memory = Memory(ofFile: act.usesFile)
    let mapping = try unsafe rig.dma.map(unsafe: memory.all, .fromDevice)
    memory.suffer(act)
    try mapping.unmap()
    #expect(rig.kinds == [act.isReplaced ? .memoryReplaced : .memoryGone])
    rig.device.close()
  }

  /// A page of a file that only this process has lost is the same when it comes back.
  @Test func aPageOfAFileMayLeaveTheProcess() throws {
    let rig = try DebugRig(.process), memory = Memory(ofFile: true)
    let registration = try unsafe rig.dma.register(unsafe: memory.all)
    memory.suffer(.discarded)
    try unsafe rig.dma.map(unsafe: memory.all, .toDevice).unmap()
    try registration.unregister()
    #expect(rig.reports.isEmpty)
    rig.device.close()
  }

  /// On tables of the kernel's, what another protection has unpinned may change until it is pinned anew.
  @Test func whatIsNotPinnedMayChange() throws {
    let rig = try DebugRig(.ioas), dma = rig.dma, memory = Memory(ofFile: false)
    try dma.switchProtection(to: .persistent)
    let registration = try unsafe dma.register(unsafe: memory.all)
    try dma.switchProtection(to: .strict)
    memory.suffer(.discarded)
    try unsafe dma.map(unsafe: memory.page(2), .fromDevice).unmap()
    try dma.switchProtection(to: .persistent)
    try unsafe dma.map(unsafe: memory.all, .toDevice).unmap()
    #expect(rig.reports.isEmpty)
    memory.suffer(.unmapped)
    try registration.unregister()
    #expect(rig.kinds == [.memoryGone])
    rig.device.close()
  }

  /// A switch that comes while memory is being registered unpins it when that is done, and its pages are noted by then.
  @Test func aSwitchWhileMemoryIsRegistered() async throws {
    let rig = try DebugRig(.ioas), dma = rig.dma, memory = Memory(ofFile: false)
    try dma.switchProtection(to: .persistent)
    let hasSwitched = Shared(false)
    rig.kernel.interject(before: "pageMap") {
      inThread {
        try? dma.switchProtection(to: .strict)
        hasSwitched.change { $0 = true }
      }
      for _ in 0..<50 where !hasSwitched.value { usleep(1_000) }
    }
    let registration = try unsafe dma.register(unsafe: memory.all)
    for _ in 0..<5_000 where !hasSwitched.value { usleep(1_000) }
    #expect(hasSwitched.value && dma.protection == .strict)
    memory.suffer(.discarded)
    try unsafe dma.map(unsafe: memory.page(2), .fromDevice).unmap()
    try registration.unregister()
    #expect(rig.reports.isEmpty)
    rig.device.close()
  }

  /// What the device has a copy of may be given up.
  @Test func bouncedMemoryIsNotLookedAt() throws {
    let rig = try DebugRig(.ioas), memory = Memory(ofFile: false)
    try rig.dma.switchProtection(to: .bounce)
    let mapping = try unsafe rig.dma.map(unsafe: memory.all, .toDevice)
    memory.suffer(.discarded)
    #expect(rig.dma.examine().isEmpty)
    try mapping.unmap()
    #expect(rig.reports.isEmpty)
    rig.device.close()
  }

  /// Memory that the process has shut is there, and cannot be read: nothing is compared.
  @Test func shutMemoryIsNotRead() throws {
    let rig = try DebugRig(.ioas), memory = Memory(ofFile: false)
    let mapping = try unsafe rig.dma.map(unsafe: memory.all, .toDevice)
    #expect(unsafe ci_mprotect(memory.base, UInt64(memory.byteCount), CI_PROT_NONE) == 0)
    #expect(rig.dma.examine().isEmpty)
    try mapping.unmap()
    #expect(rig.reports.isEmpty)
    rig.device.close()
  }

  /// Memory that is gone is not read, inside of a registration either: to read it would be to get other pages there.
  @Test(arguments: [Act.unmapped, .discarded]) func goneMemoryIsNotRead(_ act: Act) throws {
    let rig = try DebugRig(.ioas), memory = Memory(ofFile: false)
    try rig.dma.switchProtection(to: .persistent)
    let registration = try unsafe rig.dma.register(unsafe: memory.all)
    let mapping = try unsafe rig.dma.map(unsafe: memory.all, .toDevice)
    memory.suffer(act)
    mapping.sync(for: .cpu)
    mapping.sync(for: .device)
    try mapping.unmap()
    try registration.unregister()
    #expect(rig.kinds == [.memoryGone, .memoryGone, .memoryGone])
    rig.device.close()
  }

  /// A page that the device only reads may be zeros that many share, and the CPU's first store gives it another.
  @Test func aStoreIsNoReplacement() throws {
    let rig = try DebugRig(.ioas)
    let base = try unsafe rig.machine.kernel.mapMemory(byteCount: 4096, descriptor: -1, offset: 0)
    let mapping = try unsafe rig.dma.map(unsafe: UnsafeRawBufferPointer(start: base, count: 4096), .toDevice)
    mapping.sync(for: .cpu)
    unsafe base.storeBytes(of: 1, as: UInt64.self)
    mapping.sync(for: .device)
    try mapping.unmap()
    #expect(rig.reports.isEmpty)
    rig.device.close()
    unsafe rig.machine.kernel.unmapMemory(base, byteCount: 4096)
  }

  /// Where the map of pages cannot be read, nothing is said of them.
  @Test func withoutTheMapOfPages() throws {
    let rig = try DebugRig(.process), memory = Memory(ofFile: false)
    rig.kernel.failFrom(1, of: "pageMap", with: .accessDenied)
    let registration = try unsafe rig.dma.register(unsafe: memory.all)
    memory.suffer(.discarded)
    try unsafe rig.dma.map(unsafe: memory.all, .toDevice).unmap()
    try registration.unregister()
    rig.device.close()
    #expect(rig.reports.isEmpty)
  }
}

import IOMMU
import IOMMUSimulation
import Testing

/// Memory files, mappings and events: real, and counted.
@Suite struct MemoryFileTests {
  func mapFile(
    _ rig: IOMMUFDRig, _ file: Int32, start: UInt64 = 0, byteCount: UInt64 = 4096, iova: UInt64 = 0x1000,
    flags: UInt32 = 7
  ) throws(Errno) -> UInt64 {
    try rig.kernel.ioasMapFile(
      rig.iommufd, ioas: rig.ioas, flags: flags, file: file, start: start, byteCount: byteCount, iova: iova)
  }

  @Test func fileIsTheSameMemory() throws {
    let rig = try IOMMUFDRig()
    let file = try rig.kernel.createMemoryFile("test", byteCount: 64 << 10, hugePageShift: nil)
    let memory = try Memory(rig.kernel, byteCount: 64 << 10, file: file)
    #expect(try mapFile(rig, file, start: 8192, byteCount: 8192) == 0x1000)
    memory[8192 + 0x10] = 0x1234_5678
    #expect(try rig.edu(0x1010, 8, toMemory: false))
    #expect(try rig.edu(0x2020, 8, toMemory: true))
    #expect(memory[12288 + 0x20] == 0x1234_5678)
    // The kernel has the file's pages, not the descriptor or the mapping.
    rig.kernel.close(file)
    memory.close()
    #expect(try rig.edu(0x2ff8, 8, toMemory: true))
    rig.close()
  }

  @Test func fileRules() throws {
    let rig = try IOMMUFDRig()
    let file = try rig.kernel.createMemoryFile("test", byteCount: 8192, hugePageShift: nil)
    let event = try rig.kernel.createEvent()
    #expect(throws: Errno.badDescriptor) { try mapFile(rig, 9999) }
    #expect(throws: Errno.invalidArgument) { try mapFile(rig, event) }
    #expect(throws: Errno.invalidArgument) { try mapFile(rig, file, byteCount: 0) }
    #expect(throws: Errno.invalidArgument) { try mapFile(rig, file, start: 4096, byteCount: 8192) }
    #expect(throws: Errno.invalidArgument) { try mapFile(rig, file, start: 1024) }
    #expect(throws: Errno.overflow) { try mapFile(rig, file, start: .max - 1) }
    #expect(throws: Errno.notSupported) { try mapFile(rig, file, flags: 0x17) }
    #expect(throws: Errno.invalidArgument) { try mapFile(rig, file, flags: 1) }
    _ = try mapFile(rig, file)
    #expect(throws: Errno.exists) { try mapFile(rig, file) }
    rig.kernel.close(file)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func oldKernelHasNoMapFile() throws {
    var machine = SimulatedMachine.vtd
    machine.mapsFiles = false
    let rig = try IOMMUFDRig(machine)
    let file = try rig.kernel.createMemoryFile("test", byteCount: 8192, hugePageShift: nil)
    #expect(throws: Errno.notTypewriter) { try mapFile(rig, file) }
    rig.kernel.close(file)
    rig.close()
  }

  @Test func memoryStaysWhileItIsPinned() throws {
    let rig = try IOMMUFDRig()
    let memory = try Memory(rig.kernel, byteCount: 8192)
    _ = try rig.kernel.ioasMap(
      rig.iommufd, ioas: rig.ioas, flags: 7, address: memory.address, byteCount: 8192, iova: 0x1000)
    // Unmapped by the process, still pinned: the device may go on writing.
    memory.close()
    #expect(rig.machine.kernel.census.memoryMappings == 1)
    #expect(try rig.edu(0x1000, 4096, toMemory: true))
    rig.close()
  }

  @Test func countsOfWhatIsOpen() throws {
    let kernel = SimulatedKernel(.vtd)
    let file = try kernel.createMemoryFile("test", byteCount: 8192, hugePageShift: nil)
    let event = try kernel.createEvent()
    let memory = try Memory(kernel, byteCount: 8192, file: file)
    #expect(kernel.census.description == "1 memory mappings, 1 memory files, 1 events")
    let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(memory.address))!
    try unsafe kernel.advise(base, byteCount: 8192, .dontFork)
    try unsafe kernel.advise(base, byteCount: 8192, .populateWrite)
    try unsafe kernel.bindMemory(base, byteCount: 8192, node: 0)
    // Half of a mapping, then the other half.
    unsafe kernel.unmapMemory(base, byteCount: 4096)
    #expect(kernel.census.memoryMappings == 1)
    try unsafe kernel.coverMemory(base + 4096, byteCount: 4096)
    #expect(memory[4096] == 0)
    unsafe kernel.unmapMemory(base + 4096, byteCount: 4096)
    kernel.close(file)
    kernel.close(event)
    #expect(kernel.census.isEmpty)
  }

  @Test func events() throws {
    let kernel = SimulatedKernel(.vtd)
    let event = try kernel.createEvent(), other = try kernel.createEvent()
    #expect(try kernel.takeEvent(event) == nil)
    #expect(try kernel.waitReadable([event, other], timeout: .zero) == nil)
    try kernel.signalEvent(other)
    try kernel.signalEvent(other)
    #expect(try kernel.waitReadable([event, other], timeout: nil) == 1)
    #expect(try kernel.takeEvent(other) == 2)
    kernel.close(event)
    #expect(throws: Errno.badDescriptor) { try kernel.signalEvent(event) }
    kernel.close(other)
    #expect(kernel.census.isEmpty)
  }

  /// A number is a descriptor of the process's: one that is closed here may be another machine's by now, which is left alone.
  @Test func ofAnotherMachine() throws {
    let kernel = SimulatedKernel(.vtd), another = SimulatedKernel(.vtd)
    let theirs = try another.createEvent()
    kernel.close(theirs)
    #expect(throws: Errno.badDescriptor) { try kernel.signalEvent(theirs) }
    #expect(try another.takeEvent(theirs) == nil)
    try another.signalEvent(theirs)
    #expect(try another.takeEvent(theirs) == 1)
    another.close(theirs)
    #expect(another.census.isEmpty)
  }

  @Test func noHugePagesIsAnError() throws {
    let kernel = SimulatedKernel(.vtd)
    // Either the machine has pages of 1 GiB reserved or this is ENOMEM at the map; no descriptor may leak.
    if let file = try? kernel.createMemoryFile("huge", byteCount: 1 << 30, hugePageShift: 30) {
      kernel.close(file)
    }
    #expect(kernel.census.isEmpty)
  }
}

import CIOMMU
import IOMMU
import Testing

@Suite struct MachineMemoryTests {
  private static let gib: UInt64 = 1 << 30

  /// Files, and what of 8 GiB they leave.
  static let trees: [([String: String], UInt64)] = [
    ([:], 8), (["/proc/self/cgroup": "0::/a/b\n"], 8),
    (["/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "\(2 * gib)\n"], 2),
    (["/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"], 8),
    (["/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "\(9 * gib)\n"], 8),
    // Whichever is the least, of its own group and those above.
    (["/proc/self/cgroup": "9:memory:/m\n0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "\(3 * gib)\n"], 3),
    (
      [
        "/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "\(3 * gib)\n",
        "/sys/fs/cgroup/a/memory.max": "\(gib)\n", "/sys/fs/cgroup/memory.max": "max\n",
      ], 1
    ),
    // Another hierarchy's is none of version 2.
    (["/proc/self/cgroup": "4:memory:/\n", "/sys/fs/cgroup/memory.max": "\(gib)\n"], 8),
  ]

  @Test(arguments: trees)
  func theLeastHolds(_ files: [String: String], _ gibibytes: UInt64) {
    #expect(MachineMemory.byteCount(physical: 8 * Self.gib) { files[$0] } == gibibytes * Self.gib)
  }

  @Test func ofThisMachine() {
    #expect(MachineMemory.byteCount > 64 << 20 && MachineMemory.byteCount <= ci_physical_memory())
    #expect(LiveKernel().memoryByteCount == MachineMemory.byteCount)
  }
}

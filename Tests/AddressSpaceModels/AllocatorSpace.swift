import AddressSpace

/// A space to run a trace in, and how it is used.
package struct AllocatorSpace: Sendable {
  package var name: String
  var granule: PageSize
  var usable: IOVARanges
  /// The number of ranges beyond which freeing becomes more likely than allocating.
  var crowd: Int
  /// How many times memory for magazines may be asked for, at most, before it runs out for a while; never when `nil`.
  var memory: Int?

  package static let all: [AllocatorSpace] = [
    AllocatorSpace(
      name: "x86 with its interrupt window", granule: .fourKiB,
      usable: [range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)], crowd: 200),
    AllocatorSpace(name: "64 granules", granule: .fourKiB, usable: [range(0x1000, 0x4_0fff)], crowd: 40),
    AllocatorSpace(
      name: "8 MiB around 4 GiB", granule: .fourKiB, usable: [range(0xffc0_0000, 0x1_003f_ffff)], crowd: 200),
    AllocatorSpace(
      name: "64 KiB granules, little memory", granule: PageSize(shift: 16), usable: [range(0, 0xffff_ffff)], crowd: 100,
      memory: 6),
    AllocatorSpace(
      name: "4 KiB granules, no memory", granule: .fourKiB, usable: [range(0x1000, 0xff_ffff)], crowd: 100, memory: 0),
    AllocatorSpace(
      name: "granules above what is cached", granule: PageSize(shift: 22), usable: [range(0, 0xffff_ffff)], crowd: 40),
  ]
}

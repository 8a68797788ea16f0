import AddressSpace

/// A space to run a trace in, and how it is used.
package struct ModelSpace: Sendable {
  package var name: String
  var granule: PageSize
  var usable: IOVARanges
  /// The largest size asked for, as a shift above the granule.
  var largest: Int
  /// The number of ranges beyond which freeing becomes more likely than allocating.
  var crowd: Int

  package static let all: [ModelSpace] = [
    ModelSpace(
      name: "64 granules at page 1", granule: .fourKiB, usable: [range(0x1000, 0x4_0fff)], largest: 4,
      crowd: 30),
    ModelSpace(
      name: "the top 2 MiB", granule: .fourKiB, usable: [range(.max - 0x1f_ffff, .max)], largest: 6,
      crowd: 150),
    ModelSpace(
      name: "x86 with its interrupt window", granule: .fourKiB,
      usable: [range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)], largest: 24, crowd: 300),
    ModelSpace(
      name: "around 4 GiB", granule: .fourKiB, usable: [range(0xffc0_0000, 0x1_003f_ffff)], largest: 7,
      crowd: 600),
    ModelSpace(
      name: "splinters", granule: PageSize(shift: 16),
      usable: IOVARanges((0..<40).map { range($0 << 20 | 0x8_1234, $0 << 20 | 0xf_4321) }), largest: 5,
      crowd: 100),
    ModelSpace(
      name: "all 64 bits in 4 bytes", granule: PageSize(shift: 2), usable: [.full], largest: 61, crowd: 400),
    ModelSpace(name: "nothing", granule: .fourKiB, usable: [range(0x1001, 0x1ffe)], largest: 3, crowd: 1),
  ]
}

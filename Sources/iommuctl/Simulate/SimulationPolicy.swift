import IOMMU

/// When what devices have cached of an unmapped range is invalidated, and how much with it.
enum SimulationPolicy: String, CaseIterable {
  case strict
  case lazyPerCPU = "lazy-per-cpu"
  case lazySingle = "lazy-single"
  case wholeTag = "whole-tag"
  case threshold

  /// The protection behind it.
  var protection: Protection {
    switch self {
    case .strict, .wholeTag, .threshold: .strict
    case .lazyPerCPU: .lazy(.perCPU)
    case .lazySingle: .lazy(.single)
    }
  }

  /// Whether an unmap returns before its invalidation is done.
  var isLazy: Bool { protection != .strict }

  /// The longest unmap that is invalidated by its range, in pages of 4 KiB; nil where it is the library's to choose.
  func longestPages(_ threshold: Int) -> Int? {
    switch self {
    case .strict, .lazyPerCPU, .lazySingle: nil
    case .wholeTag: 0
    case .threshold: threshold
    }
  }

  /// What it is, for readers of the page.
  func explanation(_ threshold: Int) -> String {
    switch self {
    case .strict:
      "An unmap invalidates its range and waits until that is done. The library counts the commands that the range takes "
        + "and sends one for everything where that costs less."
    case .lazyPerCPU:
      "An unmap clears its entries and queues the range, 256 entries a processor. A full queue, or one that is 10 ms old, is "
        + "flushed: one command for everything. Until then the device may reach what was unmapped."
    case .lazySingle:
      "The same with one queue for all processors, of 32,768 entries and 1 s: far fewer flushes, and a longer exposure."
    case .wholeTag:
      "An unmap invalidates everything that is cached for the domain: one command however long the range is, and "
        + "what the device still uses is read from the tables again."
    case .threshold:
      "An unmap of more than \(threshold) pages invalidates everything, a shorter one its range, as kernels have it with a "
        + "fixed number. Linux's for SMMUv3 is 512 pages, on hardware without range commands."
    }
  }
}

import IOMMU

/// Time as a simulation has it: of one processor that runs the driver, and of one device, which work beside each other.
///
/// The machine's clock is the processor's. It passes by what kernel and hardware are charged for, by what the driver's own work
/// takes, and by waiting for the device, which has a time of its own until when it is busy.
struct SimulatedTime {
  private let kernel: any Kernel
  private let timer: FlushTimer
  /// When the device has done what was asked of it so far.
  private var deviceIsFree: UInt64 = 0

  /// The clock of a machine that does not follow the real time, and the timer of its domains.
  init(_ kernel: any Kernel, _ timer: FlushTimer) { (self.kernel, self.timer) = (kernel, timer) }

  /// Nanoseconds.
  var now: UInt64 { kernel.now() }

  /// Lets time pass; timers whose time comes meanwhile do their work.
  func pass(_ nanoseconds: UInt64) {
    let end = now + nanoseconds
    while let next = timer.nextTime, next <= max(end, now) {
      sleep(until: next)
      timer.fire()
    }
    sleep(until: end)
  }

  private func sleep(until time: UInt64) {
    let now = now
    if time > now { kernel.sleep(.nanoseconds(Int64(time - now))) }
  }

  /// The driver waits until the device has moved what was mapped at a moment. The device does one transfer after the other, and
  /// none before it was asked to.
  mutating func wait(for transfer: Transfer, since mapped: UInt64) {
    deviceIsFree = max(deviceIsFree, mapped) + transfer.nanoseconds
    let now = now
    pass(deviceIsFree > now ? deviceIsFree - now : 0)
  }
}

/// What a device moves, and what it takes.
///
/// Source: the model of Rubin et al., "Fast & Safe IO Memory Protection", SOSP 2024: T = p / (l0 + M · lm), which was within 10 % of
/// what they measured with a 100 Gb/s adapter.
struct Transfer {
  /// Units of 4 KiB: p bytes each.
  var pages = 0
  /// Descriptors of page tables that were read from memory for them: M for each unit.
  var reads = 0

  /// p, in bytes.
  static let unit = 4096
  /// l0: what a unit takes when nothing has to be read, and lm: what each read adds; in nanoseconds.
  static let base: UInt64 = 65, perRead: UInt64 = 197

  var nanoseconds: UInt64 { UInt64(pages) * Self.base + UInt64(reads) * Self.perRead }

  /// M; nil when nothing was moved.
  var readsPerPage: Double? { pages == 0 ? nil : Double(reads) / Double(pages) }

  /// T in 10⁹ bits a second; nil when nothing was moved.
  var gigabits: Double? {
    readsPerPage.map { Double(Self.unit * 8) / (Double(Self.base) + $0 * Double(Self.perRead)) }
  }

  static func += (sum: inout Transfer, other: Transfer) {
    sum.pages += other.pages
    sum.reads += other.reads
  }
}

/// What a driver's own work takes where it writes the page tables: no part of what a machine charges for.
///
/// Source: generic_pt's benchmark of Arm's and x86's formats on an i7-12700, 55 ns to map a page and 70 to unmap it, and 1.5 for each
/// further page of a run.
enum DriverCosts {
  static func map(_ pages: Int) -> UInt64 { 55 + further(pages) }
  static func unmap(_ pages: Int) -> UInt64 { 70 + further(pages) }

  private static func further(_ pages: Int) -> UInt64 { UInt64(max(pages - 1, 0)) * 3 / 2 }
}

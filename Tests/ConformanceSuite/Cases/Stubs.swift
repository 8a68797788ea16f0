extension Cases {
  static let registers: [ConformanceCase] = [], interrupts: [ConformanceCase] = [], mapping: [ConformanceCase] = []
  static let limits: [ConformanceCase] = [], errors: [ConformanceCase] = [], sharing: [ConformanceCase] = []
  static let library: [ConformanceCase] = [], leaks: [ConformanceCase] = []
  static let edu: [ConformanceCase] = [], nvme: [ConformanceCase] = [], reach: [ConformanceCase] = []
  static let counts: [ConformanceCase] = [], unprivileged: [ConformanceCase] = [], negative: [ConformanceCase] = []
}

/// A descriptor that is closed when its owner goes, on every path out.
package struct OwnedDescriptor: ~Copyable {
  /// The number, valid while this value lives.
  package let number: Int32
  private let kernel: any Kernel

  /// Takes over a descriptor that is open in `kernel`.
  package init(_ number: Int32, kernel: any Kernel) {
    self.number = number
    self.kernel = kernel
  }

  deinit { kernel.close(number) }
}

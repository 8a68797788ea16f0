import ConformanceSuite
import Glibc
import IOMMU
import IOMMUSimulation

/// Runs the conformance suites on this machine, or on a simulated one.
@main
enum Main {
  static func main() {
    do {
      let options = try Options(CommandLine.arguments.dropFirst())
      exit(try Row(options).run())
    } catch {
      write("conformance: \(error)\n", to: 2)
      exit(2)
    }
  }
}

/// Writes all of a text; `print` would buffer what a guest that dies should have said.
func write(_ text: String, to descriptor: Int32) {
  var bytes = Array(text.utf8)[...]
  while !bytes.isEmpty {
    let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
    if count <= 0 { return }
    bytes = bytes.dropFirst(count)
  }
}

import Foundation
import FoundationXML
import Testing
import iommuctl

/// The page: well-formed, with nothing outside of it, and with the figures of the document.
@Suite struct SimulatePageTests {
  private func page(_ options: String) throws -> (text: String, out: String) {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("page-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    // What was there before, and longer, is gone.
    try Data(repeating: 0x78, count: 1 << 20).write(to: URL(fileURLWithPath: path))
    let result = Invocation("--json simulate \(options) --html \(path)")
    #expect(result.status == .fine && result.err.isEmpty, "\(result.err)")
    return (try textFile(path), result.out)
  }

  @Test func theFiguresAreInTheTable() throws {
    let (text, out) = try page("--workload W2 --operations 30")
    let reader = try PageReader(text)
    let policies = try Document(parsing: out)["policies"].list
    #expect(reader.rows.count == policies.count && policies.count == 30)
    for (row, policy) in zip(reader.rows, policies) {
      let keys = [
        "iommu", "costs", "name", "unmaps", "commands", "syncs", "stalls", "p50_unmap_ns", "p99_unmap_ns",
        "longest_exposure_ns",
      ]
      #expect(Array(row.prefix(10)) == keys.map { policy[$0].description })
      let throughput = try #require(policy["throughput_gbps"].real), shown = try #require(Double(row[10]))
      #expect(abs(throughput - shown) <= 0.05001)
      // Points stand below each other.
      #expect(row[10].wholeMatch(of: /\d+\.\d/) != nil && row[12].wholeMatch(of: /\d+\.\d{3}/) != nil)
    }
    #expect(reader.headings.count == 14 && reader.rows.allSatisfy { $0.count == 14 })
    #expect(!text.contains("http") && !text.contains("src=") && !text.contains("url("))
    #expect(text.contains("prefers-color-scheme: dark"))
  }

  /// Six plots; in each a dot for every policy in every group.
  @Test func thePlots() throws {
    let reader = try PageReader(try page("--workload W6 --operations 300 --iommu smmuv3").text)
    #expect(reader.count(of: "svg") == 6 && reader.count(of: "circle") == 6 * 15)
    for (left, right) in reader.dots {
      // Between the names and the values.
      #expect(left >= 96 && left <= 408 && right > 0, "\(left)")
    }
    let texts = reader.plotTexts
    for text in ["smmuv3, virtual-20000", "lazy-single", "680 ns", "20.4 µs", "Throughput by the formula, Gbit/s"] {
      #expect(texts.contains(text), "\(text)")
    }
    #expect(reader.headingTexts.first == "Invalidation policies on W6")
  }

  @Test func aNameThatIsMarkup() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("simulate-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let trace = "swift-iommu-trace 1\nname a<b>&amp;\nseed 0\nthreads 1\nphase p\n"
    try Data(trace.utf8).write(to: URL(fileURLWithPath: path))
    let reader = try PageReader(try page("--workload \(path) --costs smmu-300").text)
    #expect(reader.headingTexts.first == "Invalidation policies on a<b>&amp;")
    // Nothing was unmapped: no latency and no throughput, but commands.
    #expect(reader.rows.count == 5 && reader.rows.allSatisfy { $0[4] == "0" && $0[7] == "–" && $0[10] == "–" })
    #expect(reader.count(of: "svg") == 6 && reader.count(of: "circle") == 0)
  }

  @Test func theTextNamesThePage() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("page-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let result = Invocation("simulate --workload W6 --operations 3 --costs smmu-300 --html \(path)")
    #expect(result.status == .fine && result.out.hasSuffix("\n\nThe page is \(path)\n"))
    #expect(FileManager.default.fileExists(atPath: path))
  }
}

/// A page as another parser sees it.
private final class PageReader: NSObject, XMLParserDelegate {
  private(set) var rows: [[String]] = []
  private(set) var headings: [String] = []
  private(set) var headingTexts: [String] = []
  private(set) var plotTexts: [String] = []
  /// Where the middles of dots are.
  private(set) var dots: [(x: Double, y: Double)] = []
  private var counts: [String: Int] = [:]
  private var text = ""

  init(_ page: String) throws {
    super.init()
    let parser = XMLParser(data: Data(page.utf8))
    parser.delegate = self
    // It says true whatever it has read.
    _ = parser.parse()
    try #require(mistake == nil && page.hasSuffix("</html>\n"))
  }

  private var mistake: String?
  func parser(_ parser: XMLParser, parseErrorOccurred error: any Error) {
    mistake = "line \(parser.lineNumber): \(error)"
  }

  func count(of element: String) -> Int { counts[element] ?? 0 }

  func parser(
    _ parser: XMLParser, didStartElement name: String, namespaceURI: String?, qualifiedName: String?,
    attributes: [String: String]
  ) {
    counts[name, default: 0] += 1
    text = ""
    if name == "tr" { rows.append([]) }
    if name == "circle" { dots.append((Double(attributes["cx"] ?? "") ?? -1, Double(attributes["cy"] ?? "") ?? -1)) }
  }

  func parser(_ parser: XMLParser, foundCharacters characters: String) { text += characters }

  func parser(_ parser: XMLParser, didEndElement name: String, namespaceURI: String?, qualifiedName: String?) {
    switch name {
    case "td": rows[rows.count - 1].append(text)
    case "th": headings.append(text)
    case "thead": rows = []
    case "h1": headingTexts.append(text)
    case "text": plotTexts.append(text)
    default: break
    }
  }
}

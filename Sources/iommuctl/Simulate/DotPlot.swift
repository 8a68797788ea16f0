import Glibc

/// Values as dots on a scale, a row each, in groups: as a picture in SVG, whose colours are the page's.
struct DotPlot {
  enum Scale { case linear, logarithmic }

  struct Row {
    /// Also the class that has the colour.
    let name: String
    /// Nil is not drawn.
    let value: Double?
  }

  let title: String
  /// `ns` is written as what fits.
  let unit: String
  let scale: Scale
  let groups: [(name: String, rows: [Row])]

  // In units of the picture.
  private static let width = 480.0, left = 96.0, right = 408.0, top = 30.0, rowHeight = 15.0, groupHeight = 24.0

  var svg: String {
    let height = Self.top + groups.reduce(0) { $0 + Self.groupHeight + Double($1.rows.count) * Self.rowHeight } + 26
    var parts = [
      "<svg viewBox=\"0 0 \(Self.number(Self.width)) \(Self.number(height))\" role=\"img\" aria-label=\"\(Markup.text(title))\">",
      "<text class=\"title\" x=\"0\" y=\"14\">\(Markup.text(unit.isEmpty || unit == "ns" ? title : "\(title), \(unit)"))</text>",
    ]
    for tick in ticks {
      let x = Self.number(position(tick))
      parts.append(
        "<line class=\"grid\" x1=\"\(x)\" x2=\"\(x)\" y1=\"\(Self.number(Self.top))\" y2=\"\(Self.number(height - 18))\"/>"
      )
      parts.append(
        "<text class=\"tick\" x=\"\(x)\" y=\"\(Self.number(height - 5))\" text-anchor=\"middle\">\(label(tick))</text>")
    }
    var y = Self.top
    for group in groups {
      y += Self.groupHeight
      parts.append("<text class=\"group\" x=\"0\" y=\"\(Self.number(y - 7))\">\(Markup.text(group.name))</text>")
      for row in group.rows {
        parts.append(draw(row, at: y + Self.rowHeight / 2))
        y += Self.rowHeight
      }
    }
    return parts.joined(separator: "\n") + "\n</svg>"
  }

  private func draw(_ row: Row, at y: Double) -> String {
    let middle = Self.number(y), base = Self.number(y + 4)
    let name =
      "<text x=\"\(Self.number(Self.left - 8))\" y=\"\(base)\" text-anchor=\"end\">\(Markup.text(row.name))</text>"
    let text = "<text x=\"\(Self.number(Self.right + 12))\" y=\"\(base)\">\(row.value.map(label) ?? "–")</text>"
    guard let value = row.value, scale == .linear || value > 0 else { return name + text }
    let x = Self.number(position(value))
    return name
      + "<line class=\"stem \(row.name)\" stroke=\"currentColor\" x1=\"\(Self.number(Self.left))\" x2=\"\(x)\" y1=\"\(middle)\" y2=\"\(middle)\"/>"
      + "<circle class=\"\(row.name)\" fill=\"currentColor\" cx=\"\(x)\" cy=\"\(middle)\" r=\"4\"/>" + text
  }

  // MARK: - The scale

  private var values: [Double] {
    groups.flatMap(\.rows).compactMap(\.value).filter { scale == .linear || $0 > 0 }
  }

  /// From the first tick to the last.
  private var ticks: [Double] {
    guard let highest = values.max(), let lowest = values.min(), highest > 0 else { return [] }
    switch scale {
    case .linear:
      let step = Self.step(highest / 5)
      return (0...Int((highest / step).rounded(.up))).map { Double($0) * step }
    case .logarithmic:
      // No dot lies on the edge, where the names are.
      let first = Int((log10(lowest) - 0.1).rounded(.down)), last = max(Int(log10(highest).rounded(.up)), first + 1)
      let every = (last - first + 5) / 6
      return stride(from: first, through: last + every - 1, by: every).map { pow(10, Double($0)) }
    }
  }

  /// 1, 2 or 5 times a power of ten, at least so much.
  private static func step(_ least: Double) -> Double {
    let power = pow(10, log10(least).rounded(.down))
    return [1, 2, 5, 10].map { $0 * power }.first { $0 >= least * 0.999 } ?? 10 * power
  }

  private func position(_ value: Double) -> Double {
    guard let first = ticks.first, let last = ticks.last, last > first else { return Self.left }
    let part =
      scale == .linear ? (value - first) / (last - first) : log10(value / first) / log10(last / first)
    return Self.left + part * (Self.right - Self.left)
  }

  // MARK: - Numbers

  /// A coordinate.
  private static func number(_ value: Double) -> String { decimal(value, 1) }

  /// A value in three digits and its unit.
  private func label(_ value: Double) -> String {
    guard unit == "ns" else { return Self.threeDigits(value) }
    for (name, size) in [("s", 1e9), ("ms", 1e6), ("µs", 1e3)] where value >= size * 0.9995 {
      return "\(Self.threeDigits(value / size)) \(name)"
    }
    return "\(Self.threeDigits(value)) ns"
  }

  static func threeDigits(_ value: Double) -> String {
    if value == 0 { return "0" }
    let places = 2 - Int(log10(value.magnitude).rounded(.down))
    return decimal(value, min(max(places, 0), 9))
  }
}

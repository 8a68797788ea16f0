@main struct IOMMUCtl { static func main() {} }

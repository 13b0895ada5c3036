# dmts.rb LOGS SECONDS SUITE-FOLDER SUITE REGEX METADATA-DEVICE DATA-DEVICE: runs tests of the
# device-mapper-test-suite in a guest. It takes the place of the suite's own bin/dmtest, which needs
# test-unit 1.2.3 and RSpec 2; of these only what the tests use is here.

require 'fileutils'
require 'pathname'
require 'timeout'
require 'rspec/expectations'

LOGS, SECONDS, FOLDER, SUITE, REGEX, METADATA, DATA = ARGV
# Of most devices of the suites, instead of 1 GiB: what XFS needs at least, and a little.
VOLUME_SECTORS = 320 * 2048
BENCHMARKS = /^(FSBench|ThroughputTests|FIOTests)\./

# What Debian has no package of and no test of these suites calls.
STAND_INS = %w[test/unit colored concurrent filesize pretty_table thinp_xml/era_xml
               thinp_xml/cache_xml].freeze
module Kernel
  alias require_before_dmts require
  def require(name)
    require_before_dmts(name)
  rescue LoadError
    raise unless STAND_INS.include?(name)
  end
end
module EraXML; end
module CacheXML; end
module ThinpXML; end

# Removed from Ruby since.
Fixnum = Integer unless defined?(Fixnum)
class File
  def self.exists?(path) = exist?(path)
end

RSpec::Expectations.configuration.syntax = %i[should expect]

module Test
  module Unit
    class AssertionFailedError < StandardError; end

    class TestCase
      include RSpec::Matchers
      def default_test; end

      def setup; end

      def teardown; end

      def flunk(message = 'flunked') = raise(AssertionFailedError, message)

      def assert(condition, message = 'assertion failed')
        flunk(message) unless condition
      end

      def assert_equal(expected, actual, message = nil)
        assert(expected == actual, message || "#{expected.inspect} expected, got #{actual.inspect}")
      end

      def assert_raise(*kinds)
        yield
      rescue *kinds => error
        error
      else
        flunk("#{kinds.join(' or ')} expected")
      end
      alias assert_raises assert_raise

      def assert_nothing_raised = yield

      def be_true = be_truthy

      def be_false = be_falsey
    end
  end
end

# fio writes and verifies as dt would.
File.write('/usr/local/bin/dt', <<~'SH', perm: 0o755)
  #!/bin/bash
  for word; do [[ $word != *=* ]] || declare "${word%%=*}=${word#*=}"; done
  how=randwrite
  [[ ${iotype:-} != sequential ]] || how=write
  exec fio --name=dt --filename="$of" --size="$capacity" --rw=$how --bs=4M --direct=1 \
      --ioengine=libaio --iodepth=4 --verify=crc32c --randseed="${rseed:-1}"
SH

# The suite was written for older tools, which dumped metadata in use and laid out XML differently.
File.write('/usr/local/bin/era_dump', <<~'SH', perm: 0o755)
  #!/bin/bash
  if [[ ${*: -1} == /dev/mapper/* ]]; then
      dd if="${*: -1}" of=/tmp/era-metadata bs=1M iflag=direct status=none
      set -- "${@:1:$#-1}" /tmp/era-metadata
  fi
  exec /usr/sbin/era_dump "$@"
SH
File.write('/usr/local/bin/era_invalidate', <<~'SH', perm: 0o755)
  #!/bin/bash
  set -o pipefail
  /usr/sbin/era_invalidate "$@" | sed 's/ end="/ end = "/'
SH

$LOAD_PATH.unshift("#{FOLDER}/lib")
require 'dmtest/config'
require 'dmtest/maybe_colored'
require "dmtest/suites/#{SUITE}"
# Sixteen expectations for each block of 4 KiB would take minutes, in which no device does anything.
require 'dmtest/pattern_stomper'
class PatternStomper
  private

  def verify_block(file, block)
    @expected ||= {}
    expected = @expected[block.seed % 256] ||= block.get_buffer(@block_size).b
    raise "#{@dev} has other data: #{block}" unless read_block(file, block) == expected
  end
end
$profile = DMTest::Profile.new do
  metadata_dev METADATA
  data_dev DATA
end
$test_scale = :normal

# What a test that failed wants and this guest has not, or nil.
def lacking(error)
  text = error.message + (error.respond_to?(:stderr) ? error.stderr.to_s : '')
  missing = text[/No such file or directory - (\S+)/, 1] || text[/: (\S+): not found/, 1] ||
            text[%r{/root/linux-github|failed: blktrace}]
  return "needs #{missing.delete_prefix('failed: ')}" if missing
  return "a mistake of the test: #{error.message}" if error.is_a?(LocalJumpError)
  return "needs #{$1}" if text =~ /unknown filesystem type '(\w+)'/

  'needs a larger disk' if text =~ /must be at least|out of free space/
end

# What a test fails of that ran out of time is often the removal of devices still in use.
def what_failed(error)
  first = error
  first = first.cause while first.cause
  return "not done in #{SECONDS} s" if first.class.name.start_with?('Timeout::')

  error.message.lines.first&.chomp
end

def run(kind, method)
  name = "#{kind}.#{method.to_s.delete_prefix('test_')}"
  start = Time.now
  log = File.open("#{LOGS}/#{name}", 'w')
  set_log(log)
  test = kind.allocate
  begin
    Timeout.timeout(SECONDS.to_i) do
      test.setup
      test.instance_variable_set(:@volume_size, VOLUME_SECTORS)
      test.send(method)
    ensure
      test.teardown
    end
    verdict = 'passed'
  rescue Exception => e # rubocop:disable Lint/RescueException
    raise if e.is_a?(SignalException) || e.is_a?(SystemExit)

    reason = lacking(e)
    verdict = reason ? "skipped: #{reason}" : "FAILED: #{what_failed(e)}"
    log.puts(e.full_message(highlight: false), e.respond_to?(:stderr) ? e.stderr : '')
    # It may have left commands behind, such as dmsetup wait, and devices.
    system("pkill --parent #{Process.pid}", out: log, err: log)
    system('umount -q /tmp/dmts/*/; dmsetup remove_all --force; udevadm settle 2>/dev/null',
           out: log, err: log)
  end
  log.close
  printf("%-60s %4d s  %s\n", name, Time.now - start, verdict)
  verdict[/^\w+/].downcase
end

wanted = Regexp.new(REGEX)
counts = Hash.new(0)
$stdout.sync = true
kinds = ObjectSpace.each_object(Class).select { |kind| kind < ThinpTestCase }
kinds.sort_by(&:name).each do |kind|
  kind.public_instance_methods(false).grep(/^test_/).sort.each do |method|
    name = "#{kind}.#{method.to_s.delete_prefix('test_')}"
    next unless REGEX.empty? ? name !~ BENCHMARKS : name =~ wanted

    counts[run(kind, method)] += 1
  end
end
puts format('%d passed, %d failed, %d skipped', *counts.values_at('passed', 'failed', 'skipped'))
exit(counts['failed'].zero? && counts['passed'].positive?)

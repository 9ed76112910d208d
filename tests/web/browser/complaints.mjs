// What pages complain about, and which of it is ours.
//
// A complaint is a console warning or error, an uncaught exception, an entry of the browser's own log (deprecations among
// them), an answer of 400 or more, or a request that failed. It is ours
//   1. if a script of ours stands in its address or in its stack of calls, if it is about one of our routes or files,
//      or if it names us;
//   2. or if the same page of the same server does not complain so when our scripts are empty (noise.mjs).
// A request that the page itself gives up, as a reload does, is no complaint.

import assert from 'node:assert/strict'

export class Complaints {
  #all = []
  #given

  constructor(given) {
    this.#given = given
  }

  async listen(page) {
    const session = await page.context().newCDPSession(page)
    const requests = new Map()
    session.on('Runtime.consoleAPICalled', ({ type, args, stackTrace }) => {
      if (!['warning', 'error', 'assert'].includes(type)) return
      this.#add(`console ${type}`, args.map(worded).join(' '), '', stackTrace)
    })
    session.on('Runtime.exceptionThrown', ({ exceptionDetails: { text, exception, url, stackTrace } }) =>
      this.#add('exception', `${text} ${exception?.description ?? ''}`, url, stackTrace))
    session.on('Log.entryAdded', ({ entry }) => {
      // said of each failed request, which is told with more detail below
      if (['warning', 'error'].includes(entry.level) && entry.source !== 'network') {
        this.#add(`log ${entry.source} ${entry.level}`, entry.text, entry.url, entry.stackTrace)
      }
    })
    session.on('Network.requestWillBeSent', ({ requestId, request, initiator }) =>
      requests.set(requestId, { url: request.url, method: request.method, stack: initiator.stack }))
    session.on('Network.responseReceived', ({ requestId, response }) => {
      const { method, stack } = requests.get(requestId) ?? {}
      if (response.status >= 400) this.#add(`answer ${response.status}`, `${method} ${this.#short(response.url)}`, response.url, stack)
    })
    session.on('Network.loadingFailed', ({ requestId, errorText, canceled }) => {
      const { url = '', method, stack } = requests.get(requestId) ?? {}
      if (!canceled && errorText !== 'net::ERR_ABORTED') this.#add('failed', `${method} ${this.#short(url)} ${errorText}`, url, stack)
    })
    for (const domain of ['Runtime', 'Log', 'Network']) await session.send(`${domain}.enable`)
  }

  /** {key: times}, for noise.mjs. */
  counted() {
    const times = {}
    for (const { key } of this.#all) times[key] = (times[key] ?? 0) + 1
    return times
  }

  /** What others complain about only by name. */
  everything() {
    const isCore = ({ key, isNamed }) => !isNamed && key in (this.#given.core ?? {})
    return [...new Set(this.#all.map((each) => (isCore(each) ? `(core) ${each.key}` : told(each))))].join('\n')
  }

  check() {
    const ours = this.#all.filter(({ key, isNamed }) => isNamed || !(key in this.#given.core))
    assert.equal(ours.length, 0, `the page complains because of us:\n${ours.map(told).join('\n')}`)
  }

  #add(kind, said, url = '', stack = undefined) {
    const urls = [...new Set([url, ...frames(stack)].filter(Boolean))].map((each) => this.#short(each))
    const text = `${kind}: ${said}`
    const script = `/extensions/${encodeURIComponent(this.#given.pack)}/`
    const isNamed = urls.some((each) => each.includes(script) || isRoute(each)) || /wantune/i.test(without(said))
    this.#all.push({ key: `${kind}: ${general(said)}`, text, urls, isNamed })
  }

  #short(url) {
    return url.replace(this.#given.url, '')
  }
}

/** The same complaint has the same key, whatever the port, the number of the node or the name of the built file. */
function general(said) {
  return without(said.split('\n')[0]).replace(/[0-9a-f]{8}-[0-9a-f-]{27}/g, '<id>').replace(/\d+(\.\d+)?/g, '<n>').slice(0, 300)
}

/** Of an address only the host: core asks its registry about each node by name, ours among them, and is refused. */
const without = (said) => said.replace(/(https?:\/\/[^\s/)'"]+)[^\s)'"]*/g, '$1')

const isRoute = (address) => /^\/(api\/)?wantune\//.test(address)

const told = ({ text, urls }) => [text, ...urls.slice(0, 8).map((url) => `    at ${url}`)].join('\n')

const worded = ({ value, description, unserializableValue, type }) => String(value ?? description ?? unserializableValue ?? type)

function frames(stack) {
  return stack ? [...stack.callFrames.map((frame) => frame.url), ...frames(stack.parent)] : []
}

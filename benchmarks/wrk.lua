-- Prints what wrk has seen as one line of JSON. No function of this runs during the load.

function done(summary)
    local errors = {}
    for kind, count in pairs(summary.errors) do
        if count > 0 then
            table.insert(errors, string.format('"%s": %d', kind, count))
        end
    end
    print(string.format('{"requests": %d, "seconds": %f, "errors": {%s}}',
        summary.requests, summary.duration / 1e6, table.concat(errors, ", ")))
end
